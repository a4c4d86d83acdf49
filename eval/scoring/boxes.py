"""Scores of boxes at several thresholds, and as means over classes."""

from collections.abc import Sequence

from eval.scoring.means import Metrics, by_subset, mean, split
from eval.scoring.scorers import SCALES, iou_at
from eval.task import Record, Scorer

REPORTED = (0.5, 0.75, 0.9)
AVERAGED = [step / 100 for step in range(50, 100, 5)]


def iou_above(*, classes: str) -> Scorer:
    """Share of boxes whose intersection over union with the true box is more than 0.5 (`accuracy`).

    Beside that the shares above 0.75 and 0.9; their mean over 0.5, 0.55, ..., 0.95 (`macc`); both as means over
    classes, whatever their sizes; and what `iou_at` reports of outputs. Boxes are read as there.

    Args:
        classes: Name in examples' `info` of their class.
    """
    boxes = iou_at(0.5)

    def judge(record: Record) -> Record:
        judged = boxes.judge(record)
        return judged | {"score": float(judged["iou"] > 0.5)}

    def measure(records: Sequence[Record]) -> Metrics:
        lenient = [mean(r["lenient_iou"].get(scale, 0.0) > 0.5 for r in records) for scale in SCALES]
        shares = {"accuracy" if t == 0.5 else f"accuracy_{t:g}": _share(records, t) for t in REPORTED}
        return shares | {
            "macc": _macc(records),
            "mean_iou": mean(r["iou"] for r in records),
            "parse_failures": mean(r["box"] is None for r in records),
            "lenient_accuracy": max(lenient),
        }

    def summarise(records: Sequence[Record]) -> Metrics:
        its = split(records, lambda record: record["info"][classes]).values()
        means = {"class_accuracy": mean(_share(some, 0.5) for some in its), "class_macc": mean(map(_macc, its))}
        return by_subset(records, measure) | means

    return Scorer("accuracy", judge, summarise, "IoU > 0.5")


def _share(records: Sequence[Record], threshold: float) -> float | None:
    return mean(r["iou"] > threshold for r in records)


def _macc(records: Sequence[Record]) -> float | None:
    return mean(_share(records, threshold) for threshold in AVERAGED) if records else None
