"""How runs stand beside each other over tasks of different difficulty: z-scores."""

import math
from collections.abc import Iterable, Mapping

Scores = Mapping[str, Mapping[str, float | None]]  # of one run: by task, then by metric

# What the reference averages over: not RefCOCO+, VSR, TallyQA and AI2D, and two metrics of TextVQA and RefCOCO.
REFERENCE = (
    ("vqav2", "accuracy"),
    ("gqa", "accuracy"),
    ("vizwiz", "accuracy"),
    ("textvqa-ocr", "accuracy"),
    ("textvqa", "accuracy"),
    ("refcoco", "accuracy/RefCOCO"),
    ("refcoco", "accuracy/RefCOCOg"),
    ("ocid-ref", "accuracy"),
    ("pope", "mean_accuracy"),
)


def z_scores(
    runs: Mapping[str, Scores], metrics: Iterable[tuple[str, str]]
) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """By run, task and metric: mean and standard deviation (population) over the runs that have it, and z-score.

    A run has a metric where its score is a number. Alone with it, a run gets deviation 1 and z-score 0, as the
    reference has it; where several runs have the same score the z-score is None, where the reference raises.

    Args:
        runs: Scores, by the run's name.
        metrics: Pairs of task and metric.
    """
    found: dict = {run: {} for run in runs}
    for task, metric in metrics:
        values = {run: scores.get(task, {}).get(metric) for run, scores in runs.items()}
        values = {run: value for run, value in values.items() if value is not None}
        if not values:
            continue
        mean = sum(values.values()) / len(values)
        same = len(set(values.values())) == 1  # asked of the values: rounding can make the deviation of these nonzero
        deviation = 0.0 if same else math.sqrt(sum((value - mean) ** 2 for value in values.values()) / len(values))
        deviation = 1.0 if len(values) == 1 else deviation
        for run, value in values.items():
            z = (value - mean) / deviation if deviation else None
            found[run].setdefault(task, {})[metric] = {"mean": mean, "std_dev": deviation, "z_score": z}
    return found


def aggregated(z: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]) -> dict[str, float | None]:
    """The mean z-score of each run over what it has, each metric counted once; None where it has none."""
    means = {}
    for run, tasks in z.items():
        values = [entry["z_score"] for metrics in tasks.values() for entry in metrics.values()]
        values = [value for value in values if value is not None]
        means[run] = sum(values) / len(values) if values else None
    return means
