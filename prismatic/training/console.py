"""What a run tells the person who waits for it: tables on the screen, samples and a summary on disk."""

from collections.abc import Sequence
from pathlib import Path

from prismatic.training.tracking import COUNTS, read_metrics
from vision_backbones.table import table


def print_parts(accelerator, title: str, rows: Sequence[tuple[str, int, int]]) -> None:
    """Prints what is trained and what is frozen: rows `(part, trained parameters, frozen parameters)`."""
    rows = [*rows, ("all", sum(r[1] for r in rows), sum(r[2] for r in rows))]
    accelerator.print(f"\n{title}")
    accelerator.print(table(rows, ("part", "trained", "frozen")), "\n")


def parameters(**modules) -> list[tuple[str, int, int]]:
    """Rows `(part, trained parameters, frozen parameters)` of modules by name."""
    rows = []
    for name, module in modules.items():
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        rows.append((name, sum(n for n, trained in sizes if trained), sum(n for n, trained in sizes if not trained)))
    return rows


def summarise(run_dir: Path, seconds: float, steps_per_epoch: int) -> dict:
    """Numbers of a finished run that took `seconds`, from its `metrics.jsonl`."""
    steps = [row for row in read_metrics(run_dir / "metrics.jsonl") if "loss" in row]
    rate = next(key for key in steps[0] if key.endswith("_per_second"))
    training_seconds = sum(s["seconds"] for s in steps)
    return {
        "steps": steps[-1]["step"],
        "passes": steps[-1]["step"] / steps_per_epoch,
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "seconds": seconds,
        "training_seconds": training_seconds,
        "data_seconds": sum(s.get("data_seconds", 0) for s in steps),  # that steps waited for their data
        rate: sum(s[rate] * s["seconds"] for s in steps) / training_seconds,
        "padding_share": sum(s["padding_share"] for s in steps) / len(steps),
        "flops": sum(s.get("flops", 0) for s in steps),
        "mfu": sum(s["mfu"] for s in steps) / len(steps),
        "memory_gb": max(s["memory_gb"] for s in steps),
        **{name: sum(s[name] for s in steps) for name in COUNTS.values() if name in steps[-1]},
    }


def print_samples(items, before: Sequence[str], after: Sequence[str]) -> None:
    """Prints five questions with their answers before and after."""
    rows = [
        (short(item.question), short(item.answer, 20), short(early, 20), short(late, 20))
        for item, early, late in list(zip(items, before, after, strict=True))[:5]
    ]
    print("\n" + table(rows, ("question", "expected", "before", "after")))


def print_summary(run_dir: Path, summary: dict, use: str) -> None:
    """Prints the summary, where everything lies and the command that uses it."""
    print("\n" + table([(k.replace("_", " "), v) for k, v in summary.items() if v is not None], ("result", "value")))
    print(f"\nEverything is in {run_dir}/: {', '.join(sorted(p.name for p in run_dir.glob('[!.]*')))}")
    print(f"Use it: {use}")


def short(text: str, length: int = 60) -> str:
    """The first line of a question or answer, for tables."""
    line = next((line for line in text.replace("<image>", "").split("\n") if line.strip()), "").strip()
    return line if len(line) <= length else line[: length - 3] + "..."
