"""What a finetune needs to continue bit for bit: its tensors by name, random numbers, and whether files are whole.

A step's checkpoint is a folder: one safetensors file a process (its shards, written by torch.distributed.checkpoint),
`rank-*.json` (random numbers), `state.json` (progress, versions, parts) and `manifest.json` (size and SHA-256 of every
file), which torch does not check. Nothing in it is a pickle.
"""

import json
import random
import re
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor

from prismatic.checkpoints.old_names import current_name
from vision_backbones.files import describe, read_json
from vision_backbones.weights import read_header

PREFIX, STEP_NAME, EPOCH_NAME = "step-", re.compile(r"step-\d{8,}"), re.compile(r"epoch-\d{2,}")
MANIFEST, STATE_JSON, LATEST = "manifest.json", "state.json", "latest"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "timm")

warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`model.NAME` and `optimizer.NAME.KEY` of everything that training changes; sharded as the model is."""
    tensors = {}
    for name, parameter in trained_parameters(model).items():
        tensors[f"model.{name}"] = parameter.detach()
        tensors |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return tensors


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a step computes."""
    return {name: version(name) for name in PACKAGES}


def random_state() -> dict:
    """This process's random numbers of Python, numpy, torch and the accelerator, as JSON."""
    kind, keys, *rest = np.random.get_state()
    accelerator = torch.accelerator.is_available() and torch.get_device_module().get_rng_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "accelerator": accelerator.numpy().tobytes().hex() if isinstance(accelerator, torch.Tensor) else None,
    }


def set_random_state(state: dict) -> None:
    """Puts back what `random_state` gave."""
    number, keys, gauss = state["python"]
    random.setstate((number, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if state["accelerator"] and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(_bytes(state["accelerator"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def step_folders(run_dir: Path) -> list[Path]:
    """The step checkpoints of a run, newest first; copies and folders of other names are none."""
    found = [path for path in (run_dir / "checkpoints").glob(f"{PREFIX}*") if STEP_NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The optimizer steps that a step checkpoint was saved after."""
    return int(folder.name.removeprefix(PREFIX))


def problem_with(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint's files; None if all are as they were written.

    Args:
        folder: of the checkpoint.
        part: which part of the files is read in full; sizes of all are compared.
        parts: of how many.
    """
    try:
        expected = json.loads((folder / MANIFEST).read_text())["files"]
        for number, (name, metadata) in enumerate(sorted(expected.items())):
            path = folder / name
            if Path(name).name != name or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != metadata["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes of {metadata['bytes']:,}"
            if number % parts == part and describe(path) != metadata:
                return f"{name} is not what was written (SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error!r})"
    return None


def newest_whole(folders: list[Path], accelerator) -> Path | None:
    """The first of `folders` whose files are as they were written; says which ones are skipped and why."""
    for folder in folders:
        mine = problem_with(folder, accelerator.process_index, accelerator.num_processes)
        problems = [problem for problem in gather_object([mine]) if problem]
        if not problems:
            return folder
        accelerator.print(f"checkpoint {folder} is damaged: {problems[0]}; skipping it")
    return None


def read_state(folder: Path) -> dict:
    """The content of `state.json`.

    Raises:
        ValueError: it is damaged.
    """
    return read_json(folder / STATE_JSON, "choose another checkpoint", "step", "processes", "versions")


def load_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Puts the tensors of a checkpoint into a model and its optimizer, however either is sharded.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    files: dict[str, str] = {}  # names in the files, which may be old ones, by the names of today
    for file in sorted(folder.glob("*.safetensors")):
        for name in read_header(file)[0]:
            kind, _, own = name.partition(".")
            files[f"{kind}.{current_name(own)}"] = name
    parameters = trained_parameters(model)
    found = {f"model.{name}": parameter.data for name, parameter in parameters.items()}
    stored = {name for name in files if name.startswith("model.")}
    if stored != found.keys():
        differing = sorted(stored ^ found.keys())
        raise ValueError(
            f"{folder} belongs to a different model: {len(differing)} parameters exist on one side only "
            f"({', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''})"
        )
    states, target = {}, {files[name]: value for name, value in found.items()}
    for name in files if optimizer else ():
        if name.startswith("optimizer."):
            owner, _, key = name.removeprefix("optimizer.").rpartition(".")
            parameter = parameters[owner]
            value = torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(parameter.data)
            states.setdefault(parameter, {})[key] = target[files[name]] = value
    try:
        alone = not any(isinstance(parameter, DTensor) for parameter in parameters.values())  # who reads it whole may
        dcp.load(target, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except (dcp.api.CheckpointException, ValueError) as error:
        raise ValueError(f"{folder} belongs to a different model: {str(error).splitlines()[-1]}") from error
    for parameter, state in states.items():
        if optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"):
            state["step"] = state["step"].to(parameter.device)
        optimizer.state[parameter] = state
