"""The folder of a run: who writes to it, with which settings, whether it is finished."""

import time
from collections.abc import Sequence
from pathlib import Path

import draccus
import yaml

from prismatic.checkpoints.epoch import STATES
from prismatic.checkpoints.lock import LOCK, hold
from prismatic.checkpoints.step import EPOCH_NAME, step_folders
from prismatic.training.processes import on_main
from vision_backbones.files import clean_up, read_json, write_text

SUMMARY = "summary.json"  # its presence marks a finished run
BEGUN = ("config.yaml", "metrics.jsonl", "checkpoints", LOCK)  # all that a run has before it has results


def open_run(
    config,
    accelerator,
    name: str,
    may_change: Sequence[str] = (),
    *,
    anew: bool = False,
    finished: str = SUMMARY,
    needed: Sequence[str] = (),
) -> Path:
    """The folder of a run, holding its `config.yaml`, which this run alone writes to until it ends.

    That of a finished run stays as it is.

    Args:
        config: `run_root`, and `run_id` if the user named the run.
        accelerator: all its processes call this.
        name: of the folder, with the time, where the user gave none.
        may_change: settings in which a run may differ from the one of the same name that it continues.
        anew: refuse to continue.
        finished: the file whose presence marks a finished run.
        needed: names without which in that file the run is not finished.

    Raises:
        ValueError: the folder cannot be made, is at work, or holds a run that cannot be continued.
    """
    if config.run_id is not None and (config.run_id in ("", ".", "..") or Path(config.run_id).name != config.run_id):
        raise ValueError(f"--run_id is {config.run_id!r}: expected the name of a folder, without its path")
    name = config.run_id or f"{name}+{time.strftime('%Y%m%d-%H%M%S')}".replace("/", "_").replace(":", "_")
    folder = Path(config.run_root) / on_main(accelerator, lambda: name)
    on_main(accelerator, lambda: _claim(folder, config, may_change, anew, finished, needed))
    return folder


def slower(folder: Path) -> str:
    """How a run whose loss is not finite resumes from its last checkpoint."""
    return f"resume from the last checkpoint: the same command with --run_id {folder.name} and a lower --learning_rate"


def one_writer(folder: Path, accelerator, remedy: str) -> None:
    """Makes a folder, and has its main process be the one that writes to it (see `hold`); all processes call this."""
    on_main(accelerator, lambda: hold(folder, remedy))


def _claim(folder: Path, config, may_change: Sequence[str], anew: bool, finished: str, needed: Sequence[str]) -> None:
    hold(folder, "wait for it, or choose another --run_id")
    checkpoints, settings = folder / "checkpoints", folder / "config.yaml"
    checkpoints.mkdir(exist_ok=True)
    clean_up(checkpoints)
    results = any(checkpoints.glob("[!.]*"))
    if results or (settings.exists() and any(path.name not in BEGUN for path in folder.iterdir())):
        if anew:
            raise ValueError(f"{folder} holds results, which --resume never does not replace: choose another --run_id")
        states = [folder / finished, *(folder / place for place in STATES), *step_folders(folder)]
        if not any(state.exists() for state in states) and any(
            EPOCH_NAME.fullmatch(path.name) for path in checkpoints.iterdir()
        ):
            raise ValueError(f"{folder} holds a model but no state to continue from: choose another --run_id")
        changed = _check_unchanged(folder, config, may_change)
        if _end(folder, finished, needed) is not None:
            return
        for line in changed:
            print(f"{folder}: resuming with {line}")
    write_text(settings, draccus.dump(config))


def finished_run(folder: Path, accelerator, finished: str = SUMMARY, needed: Sequence[str] = ()) -> dict | None:
    """What a run that was started again wrote at its end; None if it has not ended, or has not all that is needed.

    Raises:
        ValueError: the file is damaged.
    """

    def read() -> dict | None:
        content = _end(folder, finished, needed)
        if content is None:
            return None
        print(f"{folder} is already finished; use another --run_id to run it again")
        return content

    return on_main(accelerator, read)


def _end(folder: Path, finished: str, needed: Sequence[str]) -> dict | None:
    """What a run wrote at its end; None if it has not ended, or has not all that is needed."""
    if not (folder / finished).is_file():
        return None
    content = read_json(folder / finished, "delete it and rerun the same command to write it again")
    return None if set(needed) - content.keys() else content


def _check_unchanged(folder: Path, config, may_change: Sequence[str]) -> list[str]:
    """The settings that have changed, each as it is and as it was, if all of them may."""
    path = folder / "config.yaml"
    try:
        old = flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read ({reason}): choose another --run_id, or restore the file") from None
    new = flat(yaml.safe_load(draccus.dump(config)))
    old = flat(yaml.safe_load(draccus.dump(type(config)()))) | old  # settings that there were not yet
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    refused = [key for key in changed if key not in may_change]
    if refused:
        shown = "; ".join(f"--{key} was {old.get(key)}, is {new.get(key)}" for key in refused)
        raise ValueError(f"{folder} was started with other settings ({shown}): use those, or another --run_id")
    return [f"--{key} {new.get(key)} (was {old.get(key)})" for key in changed]


def flat(settings: dict, prefix: str = "") -> dict:
    """Nested settings by dotted name."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
