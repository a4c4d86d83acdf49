"""Where metrics go: always a jsonl file, and whatever trackers accelerate knows."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jsonlines
from accelerate import Accelerator
from tqdm import tqdm

from prismatic.training import trackers
from vision_backbones.files import write_text

# What batches count that was not trained on, and its name in metrics.
COUNTS = {"skipped": "skipped_images", "cut_rows": "cut_rows", "cut_tokens": "cut_tokens"}


class MetricsLog:
    """Appends dicts of metrics to `run_dir/metrics.jsonl` and hands them to the trackers.

    Of an earlier, unfinished run the metrics of its first `done_steps` steps stay in the file, and are left out if they
    come again. A tracker that fails is told once and ends nothing.

    Raises:
        ValueError: a tracker cannot start.
    """

    def __init__(self, accelerator: Accelerator, config, run_dir: Path, done_steps: int = 0):
        self.accelerator, self.failing, self.writer, self.known = accelerator, False, None, set()
        if config.trackers:
            try:
                trackers.start(accelerator, config, run_dir, done_steps)
            except Exception as error:  # of strangers' services: nearly anything
                raise ValueError(
                    f"--trackers {','.join(config.trackers)} cannot start ({_reason(error)}): log in, set it offline, "
                    "or leave it out (metrics.jsonl is always written)"
                ) from error
        if accelerator.is_main_process:
            self.writer = open_metrics(run_dir / "metrics.jsonl", done_steps)
            self.known = {_kind(row) for row in read_metrics(run_dir / "metrics.jsonl")}

    def __call__(self, metrics: dict) -> None:
        """Writes a row, whose `step` is the number of optimizer steps done, and tracks it."""
        if _kind(metrics) not in self.known:
            if self.writer:
                self.writer.write(metrics)
            self.track({name: value for name, value in metrics.items() if name != "step"}, metrics["step"])

    def track(self, values: dict, step: int) -> None:
        """Hands numbers to the trackers alone; what is None is left out."""
        there = {name: value for name, value in values.items() if value is not None}
        if there:
            self._hand(lambda: self.accelerator.log(there, step=step))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Hands a picture to the trackers that take any."""
        for tracker in self.accelerator.trackers if path.is_file() else ():
            self._hand(partial(trackers.log_picture, tracker, name, path, step))

    def _hand(self, over: Callable[[], None]) -> None:
        try:
            over()
        except Exception as error:
            if not self.failing:
                tqdm.write(f"a tracker failed ({_reason(error)}); training continues, and metrics.jsonl has everything")
            self.failing = True


def _kind(row: dict) -> tuple:
    """What a row tells: its step and names."""
    return row["step"], *sorted(row)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def open_metrics(path: Path, done_steps: int) -> jsonlines.Writer:
    """Appends to a `metrics.jsonl`, in which the rows of an earlier run's first `done_steps` steps stay."""
    kept = [m for m in read_metrics(path) if m["step"] <= done_steps] if done_steps and path.is_file() else []
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return jsonlines.open(path, "a", flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a line that was cut off is left out."""
    with jsonlines.open(path, loads=json.loads) as reader:  # by default orjson, where it is: it reads no NaN
        return [row for row in reader.iter(type=dict, skip_invalid=True) if isinstance(row.get("step"), int)]
