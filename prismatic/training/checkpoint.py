"""Checkpoints that are never half there: written beside their place, then renamed."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import draccus
import torch
import yaml
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from prismatic.training.state import step_folders
from vision_backbones.weights import sync, write_tensors

OPTIMIZER = "optimizer"
SUMMARY = "summary.json"  # its presence marks a finished run
STATE = Path("checkpoints/last/training.safetensors")  # its presence lets an unfinished run continue


def save_model(model, processor, folder: Path, weights: dict | None = None, replace: bool = False) -> Path:
    """Writes model (or peft adapters) and processor to a new `folder` as `save_pretrained` does, all or nothing.

    Args:
        model: with its own weights, or sharded.
        processor: beside it.
        folder: to write.
        weights: state dict of a sharded model.
        replace: put it in the place of an existing folder.

    Raises:
        ValueError: the folder exists.
    """
    if folder.exists() and not replace:
        raise ValueError(f"{folder} exists already: choose another folder")
    beside = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    model.save_pretrained(beside, **({} if weights is None else {"state_dict": weights}))
    processor.save_pretrained(beside)
    for path in beside.rglob("*"):
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    sync(folder.parent)
    return folder


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file all or nothing."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    sync(beside)
    beside.replace(path)


def save_state(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, progress: dict) -> None:
    """Writes all that a run needs to continue into one safetensors file, all or nothing.

    Args:
        path: of the file.
        modules: by name; parameters and persistent buffers are stored.
        optimizer: its state is stored.
        progress: JSON-able, such as the number of steps done.
    """
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}.{number}.{key}": value for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_state(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict:
    """Puts back what `save_state` wrote, and gives its `progress`.

    Raises:
        ValueError: the file is damaged, or of another model.
    """
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        tensors = load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it to start the run over") from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key in [key for key in tensors if key.startswith(f"{OPTIMIZER}.")]:
        _, number, name = key.split(".")
        state.setdefault(int(number), {})[name] = tensors.pop(key)
    try:
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        raise ValueError(f"{path} is of another model: {error}") from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def open_run(config, accelerator, name: str, may_change: Sequence[str] | None = None, finished: str = SUMMARY) -> Path:
    """The folder of a run, holding its `config.yaml`.

    Args:
        config: `run_root`, and `run_id` if the user named the run.
        accelerator: all its processes call this.
        name: of the folder, with the time, where the user gave none.
        may_change: settings in which a run may differ from the unfinished one of the same name that it continues.
            None starts an unfinished run over, as does one that was interrupted before it stored its state.
        finished: the file whose presence marks a finished run.

    Raises:
        ValueError: the folder holds a finished run, or an unfinished one with other settings.
    """
    name = config.run_id or f"{name}+{time.strftime('%Y%m%d-%H%M%S')}"
    name = broadcast_object_list([name.replace("/", "_").replace(":", "_")])[0]
    folder = Path(config.run_root) / name
    if (folder / finished).is_file():
        raise ValueError(
            f"{folder} holds a finished run: choose another --run_id, or delete the folder to run it again"
        )
    continues = may_change is not None and ((folder / STATE).is_file() or bool(step_folders(folder)))
    if continues:
        _check_unchanged(folder, config, may_change)
    accelerator.wait_for_everyone()  # every process has looked before the first one writes
    if accelerator.is_main_process:
        if not continues:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(draccus.dump(config))
    accelerator.wait_for_everyone()
    return folder


def _check_unchanged(folder: Path, config, may_change: Sequence[str]) -> None:
    old, new = (_flat(yaml.safe_load(text)) for text in ((folder / "config.yaml").read_text(), draccus.dump(config)))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and key not in may_change]
    if changed:
        shown = "; ".join(f"--{key} was {old.get(key)}, is {new.get(key)}" for key in changed)
        raise ValueError(f"{folder} is unfinished and had other settings ({shown}): use those, or another --run_id")


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run folder; None when there is none."""
    found = [*(run_dir / "checkpoints").glob("epoch-*"), *step_folders(run_dir)]
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=None)
