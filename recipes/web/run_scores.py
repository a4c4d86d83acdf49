"""Results in the files of runs, by their main metrics: of evaluations, of probes, and what training was measured by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.charts import plain
from eval.report.tables import percent
from recipes.web.run_files import at, number

RECALL = "macro recall"  # of a probe's best epoch
HEADLINES = (  # in summary.json, in metrics.jsonl, as it is called, and whether it is a share
    ("held_out_accuracy_after", "held_out_accuracy", "held-out accuracy", True),
    ("top1_best", "top1", "top-1", True),
    ("macro_recall_best", "macro_recall", RECALL, True),
    ("validation_loss_best", "validation_loss", "validation loss", False),
)


@dataclass(frozen=True)
class Score:
    """A result of an evaluation or a probe: of what, by which metric; shares, and None for what is not known."""

    of: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    examples: int | None
    majority: float | None = None


def scores_in(results: dict[str, Any]) -> list[Score]:
    """What the `results.json` of an evaluation or a probing says, main metrics only."""
    tasks, probes, found = results.get("tasks"), results.get("probes"), []
    for key, task in tasks.items() if isinstance(tasks, dict) else ():
        main = str(at(task, "main"))
        value, interval = number(at(task, "metrics", main)), _interval(at(task, "intervals", main))
        examples, majority = at(task, "examples"), number(at(task, "majority"))
        found.append(
            Score(plain(key, 60), plain(main, 60).replace("_", " "), value, interval, count(examples), majority)
        )
    images = count(at(results, "images", "val"))
    for probe in probes if isinstance(probes, list) else ():
        of = f"{plain(at(probe, 'backbone'), 60)}, {plain(at(probe, 'labels'), 60)}"
        value, interval = (at(probe, "best", kind, "macro_recall") for kind in ("scores", "intervals"))
        found.append(Score(of, RECALL, number(value), _interval(interval), images))
    return found


def _interval(found: Any) -> tuple[float, float] | None:
    ends = [number(end) for end in found] if isinstance(found, list) else []
    return tuple(ends) if len(ends) == 2 and None not in ends else None


def count(found: Any) -> int | None:
    """A whole number; None if it is anything else."""
    return found if type(found) is int else None


def headline(summary: dict, rows: Sequence[dict], scores: Sequence[Score]) -> str:
    """The main result of a run in a few words: what it was measured by while it trained, else of its evaluation."""
    if scores and scores[0].metric == RECALL:
        best = max(scores, key=lambda score: score.value or 0)
        return f"{RECALL} {percent(best.value)} ({best.of})"
    for key, logged, title, is_share in HEADLINES:
        values = [number(summary.get(key)), *(number(row[logged]) for row in reversed(rows) if logged in row)]
        value = next((value for value in values if value is not None), None)
        if value is not None:
            return f"{title} {percent(value) if is_share else f'{value:.4g}'}"
    if not scores:
        return "-"
    more = f", and {len(scores) - 1} more" if len(scores) > 1 else ""
    return f"{scores[0].of}: {scores[0].metric} {percent(scores[0].value)}{more}"
