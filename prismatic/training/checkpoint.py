"""Checkpoints that are never half there: written beside their place, then renamed."""

import json
import os
import shutil
import time
from pathlib import Path

import draccus
from accelerate.utils import broadcast_object_list

SUMMARY = "summary.json"  # its presence marks a finished run


def save_model(model, processor, folder: Path) -> Path:
    """Writes model (or peft adapters) and processor to a new `folder` as `save_pretrained` does, all or nothing.

    Raises:
        ValueError: the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already: choose another folder")
    beside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save_pretrained(beside)
    processor.save_pretrained(beside)
    for path in beside.rglob("*"):
        _sync(path)
    beside.rename(folder)
    _sync(folder.parent)
    return folder


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file all or nothing."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    _sync(beside)
    beside.replace(path)


def open_run(config, accelerator) -> Path:
    """The folder of a new run, holding its `config.yaml`. An unfinished run of the same name is started over.

    Raises:
        ValueError: the folder holds a finished run.
    """
    name = config.run_id or f"{config.model or config.vision_backbone}+{config.stage}+{time.strftime('%Y%m%d-%H%M%S')}"
    name = broadcast_object_list([name.replace("/", "_").replace(":", "_")])[0]
    folder = Path(config.run_root) / name
    if (folder / SUMMARY).is_file():
        raise ValueError(
            f"{folder} holds a finished run: choose another --run_id, or delete the folder to run it again"
        )
    accelerator.wait_for_everyone()  # every process has looked before the first one writes
    if accelerator.is_main_process:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(draccus.dump(config))
    accelerator.wait_for_everyone()
    return folder


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run folder; None when there is none."""
    found = sorted((run_dir / "checkpoints").glob("epoch-*"))
    return found[-1] if found else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
