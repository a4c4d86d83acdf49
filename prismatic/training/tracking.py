"""Where metrics go: always a jsonl file, and whatever trackers accelerate knows."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jsonlines
from accelerate import Accelerator


def metrics_log(accelerator: Accelerator, config, run_dir: Path) -> Callable[[dict], None]:
    """A function that appends a dict of metrics to `run_dir/metrics.jsonl` and hands it to the trackers."""
    if config.trackers:
        flat = {
            k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in dataclasses.asdict(config).items()
        }
        accelerator.init_trackers("prismatic", config=flat)
    writer = jsonlines.open(run_dir / "metrics.jsonl", "w", flush=True) if accelerator.is_main_process else None

    def log(metrics: dict) -> None:
        if writer:
            writer.write(metrics)
        accelerator.log({k: v for k, v in metrics.items() if v is not None and k != "step"}, step=metrics["step"])

    return log
