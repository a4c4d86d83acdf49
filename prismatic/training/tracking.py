"""Where metrics go: always a jsonl file, and whatever trackers accelerate knows."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jsonlines
from accelerate import Accelerator
from tqdm import tqdm

from vision_backbones.files import write_text

# What batches count that was not trained on, and its name in metrics.
COUNTS = {"skipped": "skipped_images", "cut_rows": "cut_rows", "cut_tokens": "cut_tokens"}


def metrics_log(accelerator: Accelerator, config, run_dir: Path, done_steps: int = 0) -> Callable[[dict], None]:
    """A function that appends a dict of metrics to `run_dir/metrics.jsonl` and hands it to the trackers.

    Of an earlier, unfinished run the metrics of its first `done_steps` steps stay in the file.
    """
    if config.trackers:
        flat = {
            k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in dataclasses.asdict(config).items()
        }
        try:
            accelerator.init_trackers("prismatic", config=flat)
        except Exception as error:  # of strangers' services: nearly anything
            raise ValueError(
                f"--trackers {','.join(config.trackers)} cannot start ({_reason(error)}): log in, set it offline, or "
                "leave it out (metrics.jsonl is always written)"
            ) from error
    writer, failing = None, False
    if accelerator.is_main_process:
        writer = open_metrics(run_dir / "metrics.jsonl", done_steps)

    def log(metrics: dict) -> None:
        nonlocal failing
        if writer:
            writer.write(metrics)
        try:
            accelerator.log({k: v for k, v in metrics.items() if v is not None and k != "step"}, step=metrics["step"])
        except Exception as error:
            if not failing:
                tqdm.write(f"a tracker failed ({_reason(error)}); training continues, and metrics.jsonl has everything")
            failing = True

    return log


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def open_metrics(path: Path, done_steps: int) -> jsonlines.Writer:
    """Appends to a `metrics.jsonl`, in which the rows of an earlier run's first `done_steps` steps stay."""
    kept = [m for m in read_metrics(path) if m["step"] <= done_steps] if done_steps and path.is_file() else []
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return jsonlines.open(path, "a", flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a line that was cut off is left out."""
    with jsonlines.open(path) as reader:
        return [row for row in reader.iter(type=dict, skip_invalid=True) if isinstance(row.get("step"), int)]
