"""What a run tells the person who waits for it: tables on the screen, samples and a summary on disk."""

from collections.abc import Sequence
from pathlib import Path

import jsonlines

from prismatic.training.optim import trained_and_frozen


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """A table in plain text; numbers are aligned on the right."""
    cells = [
        [f"{c:,}" if isinstance(c, int) else f"{c:.3g}" if isinstance(c, float) else str(c) for c in r] for r in rows
    ]
    widths = [max(len(r[i]) for r in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(isinstance(r[i], (int, float)) for r in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def print_parts(accelerator, config, model) -> None:
    """Prints what is trained and what is frozen."""
    rows = [(part, trained, frozen) for part, trained, frozen in trained_and_frozen(model)]
    rows.append(("all", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    accelerator.print(f"\n{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}")
    accelerator.print(table(rows, ("part", "trained", "frozen")), "\n")


def summarise(run_dir: Path, training_seconds: float, seconds: float) -> dict:
    """Numbers of a finished run, from its `metrics.jsonl`."""
    with jsonlines.open(run_dir / "metrics.jsonl") as reader:
        steps = list(reader)
    return {
        "steps": steps[-1]["step"],
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "seconds": seconds,
        "training_seconds": training_seconds,
        "tokens_per_second": sum(s["tokens_per_second"] * s["seconds"] for s in steps) / training_seconds,
        "padding_share": sum(s["padding_share"] for s in steps) / len(steps),
        "mfu": sum(s["mfu"] for s in steps) / len(steps),
        "memory_gb": max(s["memory_gb"] for s in steps),
        "skipped_images": steps[-1]["skipped_images"],
    }


def print_summary(run_dir: Path, summary: dict, items, before: Sequence[str], after: Sequence[str]) -> None:
    """Prints five sample answers, the summary and where everything lies."""
    if items:
        rows = [
            (short(item.question), short(item.answer, 20), short(early, 20), short(late, 20))
            for item, early, late in list(zip(items, before, after, strict=True))[:5]
        ]
        print("\n" + table(rows, ("question", "expected", "before", "after")))
    print("\n" + table([(k.replace("_", " "), v) for k, v in summary.items() if v is not None], ("result", "value")))
    print(f"\nEverything is in {run_dir}/: {', '.join(sorted(p.name for p in run_dir.iterdir()))}")
    print(f"Use it: python -c \"import prismatic; model, processor = prismatic.load('{run_dir}')\"")


def short(text: str, length: int = 60) -> str:
    """The first line of a question or answer, for tables."""
    line = next((line for line in text.replace("<image>", "").split("\n") if line.strip()), "").strip()
    return line if len(line) <= length else line[: length - 3] + "..."
