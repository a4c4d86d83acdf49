"""What trackers get of a run: its own place and name, its settings, numbers by step, pictures."""

import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from vision_backbones.files import write_text
from vision_backbones.safe_images import open_image, to_rgb


def logs_folder(run_dir: Path) -> Path:
    """Where trackers write what they keep of a run: `tensorboard --logdir runs/logs` shows runs under their names."""
    return run_dir.parent / "logs" / run_dir.name


def start(accelerator: Accelerator, config, run_dir: Path, done_steps: int) -> None:
    """Starts the trackers of `config.trackers` and gives them the settings; on the main process alone.

    A run that continues after `done_steps` steps is the same run to them.

    Args:
        accelerator: made by `launch`, which checked that the trackers are there.
        config: a dataclass of settings with `trackers` and `wandb`, a `WandbConfig`.
        run_dir: of the run; trackers show its name.
        done_steps: steps done before.

    Raises:
        Exception: whatever a tracker raises that cannot start.
    """
    if not accelerator.is_main_process:
        return
    logs = logs_folder(run_dir)
    logs.mkdir(parents=True, exist_ok=True)
    options = {"trackio": {"name": run_dir.name, "resume": "allow"}}
    if "wandb" in config.trackers:
        options["wandb"] = wandb_options(config.wandb, run_dir, done_steps)
    # Of steps that an interrupted run did and this one does again, TensorBoard shows the new ones alone.
    tensorboard = TensorBoardTracker(run_dir.name, logs.parent, purge_step=done_steps + 1 if done_steps else 0)
    accelerator.log_with = [tensorboard if str(name) == "tensorboard" else name for name in accelerator.log_with]
    accelerator.init_trackers(config.wandb.project, init_kwargs=options)
    settings = dataclasses.asdict(config)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            _tensorboard_settings(tracker, settings)
        else:
            tracker.store_init_configuration(settings if tracker.name == "wandb" else dict(flat(settings)))


def wandb_options(config, run_dir: Path, done_steps: int) -> dict[str, Any]:
    """What `wandb.init` gets besides the project, from a `WandbConfig`.

    Without an id in the settings the run has one of its own, kept in `logs_folder` for when it is resumed.
    """
    kept = logs_folder(run_dir) / "wandb.json"
    run = config.id
    if not run and done_steps and kept.is_file():
        run = json.loads(kept.read_text())["id"]
    run = run or secrets.token_hex(4)
    write_text(kept, json.dumps({"id": run}) + "\n")
    folder = os.environ.get("WANDB_DIR") or str(kept.parent)
    return {"entity": config.entity, "name": config.name or run_dir.name, "id": run, "resume": "allow", "dir": folder}


def log_picture(tracker: GeneralTracker, name: str, path: Path, step: int) -> None:
    """Hands a picture to a tracker, if it takes any."""
    if hasattr(tracker, "log_images"):
        with open_image(path) as picture:
            pixels = np.asarray(to_rgb(picture))[None]
        tracker.log_images({name: pixels}, step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))


def flat(settings: dict | list, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs such as `("data.workers", 4)`, `("betas.0", 0.9)`: numbers, booleans, text, None."""
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        if isinstance(value, dict | list | tuple):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, int | float | str | None) else str(value)


def _tensorboard_settings(tracker: TensorBoardTracker, settings: dict) -> None:
    """Settings as hyperparameters, which have no null, and as YAML, which has everything.

    accelerate's own way makes a second run out of them, at every start another one.
    """
    from torch.utils.tensorboard.summary import hparams

    there = {name: value for name, value in flat(settings) if value is not None}
    for part in hparams(there, {"loss": None, "held_out_accuracy": None}):
        tracker.tracker.file_writer.add_summary(part)
    text = yaml.safe_dump(settings, sort_keys=False).rstrip()
    tracker.tracker.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)
    tracker.tracker.flush()
