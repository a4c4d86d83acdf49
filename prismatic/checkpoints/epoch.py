"""What runs save, all or nothing: models, and the state that training on images continues from."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from prismatic.checkpoints.step import EPOCH_NAME, MANIFEST, problem_with, step_folders, step_of
from prismatic.training.processes import on_main
from vision_backbones.backbone_files import write_tensors
from vision_backbones.files import describe, put_folder, read_json, write_json, write_text

OPTIMIZER = "optimizer"
STATE_FILE = "training.safetensors"
STATES = ("checkpoints/last", "checkpoints/previous")  # the newest state that training on images continues from first
PARTS_FILE = "prismatic_parts.json"  # beside LoRA adapters: the arguments of `prismatic.models.load.start`
TRAINED = "trained.json"  # after how many steps and epochs an epoch's model was saved


def save_model(
    model, processor, folder: Path, weights: dict | None = None, *, replace: bool = False, metadata: dict | None = None
) -> Path:
    """Writes model (or peft adapters) and processor to a new `folder` as `save_pretrained` does, all or nothing.

    Args:
        model: with its own weights, or sharded.
        processor: beside it.
        folder: to write.
        weights: state dict of a sharded model.
        replace: put it in the place of an existing folder.
        metadata: contents of JSON files (or of text files) beside them, by name.

    Raises:
        ValueError: the folder exists.
    """
    if folder.exists() and not replace:
        raise ValueError(f"{folder} exists already: choose another folder")
    tmp_path = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        model.save_pretrained(tmp_path, **({} if weights is None else {"state_dict": weights}))
        processor.save_pretrained(tmp_path)
        for name, content in (metadata or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (write_text if isinstance(content, str) else write_json)(tmp_path / name, content)
        put_folder(tmp_path, folder)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    return folder


def save_state(
    run_dir: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    progress: dict,
    export: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes all that a run needs to continue to `checkpoints/last`, all or nothing; what was there is kept beside it.

    Args:
        run_dir: of the run.
        modules: by name; parameters and persistent buffers are stored.
        optimizer: its state is stored.
        progress: JSON-able, such as the number of steps done.
        export: writes more files into the folder.
    """
    last, previous = (run_dir / place for place in STATES)
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}.{number}.{key}": value for key, value in state.items()}
    tmp_path = last.with_name(".last.unfinished")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        export(tmp_path)
        write_tensors(tmp_path / STATE_FILE, tensors, {"progress": json.dumps(progress)})
        write_json(tmp_path / MANIFEST, {"files": {path.name: describe(path) for path in sorted(tmp_path.iterdir())}})
        put_folder(tmp_path, last, previous)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise


def newest_state(run_dir: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest folder of `save_state` whose files are as they were written; None if there is none at all.

    Raises:
        ValueError: all there are are damaged.
    """
    problems = []
    for folder in (run_dir / place for place in STATES):
        if not (folder / STATE_FILE).is_file():
            continue
        problem = problem_with(folder)
        if not problem:
            return folder
        problems.append(f"{folder} is damaged: {problem}")
        say(f"{problems[-1]}; skipping it")
    if problems:
        raise ValueError(f"{problems[0]}; there is no other to resume from: choose another --run_id")
    return None


def load_state(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict:
    """Puts back what `save_state` wrote, and returns its `progress`.

    Raises:
        ValueError: the file is damaged, or of another model.
    """
    path = folder / STATE_FILE
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        tensors = load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): choose another --run_id") from error
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key in [key for key in tensors if key.startswith(f"{OPTIMIZER}.")]:
        _, number, name = key.split(".")
        state.setdefault(int(number), {})[name] = tensors.pop(key)
    try:
        for name, module in modules.items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to a different model: {error}") from error
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of a run folder after the most steps, of two after equally many the epoch's; None without any."""
    epochs = [path for path in (run_dir / "checkpoints").glob("epoch-*") if EPOCH_NAME.fullmatch(path.name)]
    found = [(trained_steps(path), int(path.name.rpartition("-")[2]), path) for path in epochs]
    found += [(step_of(path), 0, path) for path in step_folders(run_dir)]
    return max(found, default=(0, 0, None))[2]


def trained_steps(epoch: Path) -> float:
    """Optimizer steps after which an epoch's model was saved; infinity where none are recorded (an older version)."""
    path = epoch / TRAINED
    if not path.is_file():
        return math.inf
    return read_json(path, "restore it, or name the checkpoint itself", "step")["step"]


def epoch_folder(run_dir: Path, epoch: int) -> Path:
    """Where the model of a 0-based epoch is saved."""
    return run_dir / "checkpoints" / f"epoch-{epoch + 1:02d}"


def has_epoch(run_dir: Path, epoch: int, steps: int, accelerator) -> bool:
    """Whether the model of an epoch was saved after so many steps; all processes call this."""
    return on_main(accelerator, lambda: trained_steps(epoch_folder(run_dir, epoch)) == steps)
