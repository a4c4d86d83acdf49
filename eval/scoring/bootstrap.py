"""How sure scores are: bootstrap over images, because the questions of one image are not independent.

Percentiles of the score of `RESAMPLES` random draws of as many images, with replacement and all questions of a drawn
image; seeded. Questions that share one of several images, or count together, are drawn together. Where all answers are
equally good the interval has no width, however few they are.
"""

import math
from collections.abc import Sequence

from eval.data.selection import SEED
from eval.scoring.means import split, subset_means
from eval.scoring.units import units_of
from eval.task import Record

RESAMPLES = 5_000
PERCENT = (2.5, 97.5)  # the ends of a 95 % interval
_AT_ONCE = 4_000_000  # drawn images held in memory

Interval = list[float] | None


def bootstrap_interval(scores: Sequence[float], groups: Sequence) -> tuple[float, float]:
    """The 95 % interval of the mean of `scores`; those of one group (an image) are drawn together.

    Raises:
        ValueError: There are fewer than two groups, or not as many groups as scores.
    """
    if len(scores) != len(groups) or len(set(groups)) < 2:
        raise ValueError(f"got {len(scores)} scores in {len(set(groups))} groups: expected two groups or more")
    records = [{"score": s, "image": g, "subset": ""} for s, g in zip(scores, groups, strict=True)]
    return tuple(interval(resample([records])[0]["accuracy"][1]))


def resample(runs: Sequence[Sequence[Record]]) -> list[dict[str, tuple]]:
    """Scores of the records of every run, and of random draws of their images: the same images in every run.

    Args:
        runs: Judged records (`score`, `image`, `subset`) of the same examples in the same order, at least one.

    Returns:
        For every run, by the metric's name, `(score, scores of the draws [RESAMPLES])`: "accuracy", the mean of all;
        "accuracy/SUBSET"; "mean_accuracy", the mean over subsets, whatever their sizes (see `subset_means`); and for
        groups called NAME "NAME_accuracy", the share of groups of which every question scores 1, also by subset and as
        "mean_NAME_accuracy". The draws
        are nan where a draw has no question of a subset, and everywhere where fewer than two images have one.
    """
    import numpy as np

    examples = runs[0]
    subsets = list(dict.fromkeys(r["subset"] for r in examples if r["subset"]))
    columns = [("accuracy", subset, None) for subset in ("", *subsets)]
    for name in dict.fromkeys(name for r in examples for name in r.get("groups", ())):
        columns += [(f"{name}_accuracy", subset, name) for subset in ("", *subsets)]
    member = np.array([_places(examples, subset, group) for _, subset, group in columns], dtype=float).T
    names = [f"{examples[first]['image']}\0{first}" for first in units_of(examples)]
    units, of_unit = np.unique(names, return_inverse=True)
    counts = _sums(member, of_unit, len(units))
    scores = []
    for records in runs:
        values = {group: _scores(records, group) for _, _, group in columns}
        scores.append(_sums(member * np.array([values[group] for _, _, group in columns]).T, of_unit, len(units)))
    sums = np.concatenate([counts, *scores], axis=1)
    total, drawn = sums.sum(0, keepdims=True), _drawn_sums(sums)
    few = (counts > 0).sum(0) < 2

    found, names = [], [f"{metric}/{subset}" if subset else metric for metric, subset, _ in columns]
    for number in range(1, len(runs) + 1):
        part = slice(number * len(names), (number + 1) * len(names))
        with np.errstate(invalid="ignore"):
            means, draws = total[:, part] / total[:, : len(names)], drawn[:, part] / drawn[:, : len(names)]
        draws[:, few] = np.nan
        values = {name: (float(means[0, i]), draws[:, i]) for i, name in enumerate(names)}
        for metric in dict.fromkeys(metric for metric, *_ in columns):
            for name, shares in subset_means(subsets or [""]).items():
                its = [values[f"{metric}/{subset}" if subset else metric] for subset in shares]
                share, name = list(shares.values()), name.replace("accuracy", metric, 1)
                values[name] = float(np.dot([mean for mean, _ in its], share)), np.stack([d for _, d in its], 1) @ share
        found.append(values)
    return found


def _places(records: Sequence[Record], subset: str, group: str | None) -> list[bool]:
    """Which records stand for something that is counted: each for itself, or the first of each group for the group."""
    firsts = {id(its[0]) for its in split(records, _name_in(group)).values()} if group else None
    return [
        (not subset or record["subset"] == subset) and (firsts is None or id(record) in firsts) for record in records
    ]


def _scores(records: Sequence[Record], group: str | None) -> list[float]:
    """What each record scores, or whether every record of its group scores 1."""
    if group is None:
        return [record["score"] for record in records]
    groups = split(records, _name_in(group))
    wholes = {name: float(min(r["score"] for r in its) == 1) for name, its in groups.items()}
    return [wholes[_name_in(group)(record)] for record in records]


def _name_in(group: str):
    return lambda record: record["groups"][group]


def interval(draws) -> Interval:
    """The 95 % interval of drawn scores; None where no draw has one."""
    import numpy as np

    draws = draws[np.isfinite(draws)]
    return np.percentile(draws, PERCENT).tolist() if len(draws) else None


def intervals(records: Sequence[Record], metrics: dict[str, float | None], main: str) -> dict[str, Interval]:
    """The 95 % intervals of those metrics that are means of the records' scores.

    These are a task's accuracy, that of its subsets, and the mean of these, where `metrics` has that very number; and
    the main metric, under any name, if it equals the mean score. Others, such as F1 or ROC-AUC, have none.
    """
    if not records:
        return {}
    values = resample([records])[0]
    values.setdefault(main, values["accuracy"])
    return {
        name: interval(draws)
        for name, (value, draws) in values.items()
        if metrics.get(name) is not None and math.isclose(metrics[name], value, abs_tol=1e-9)
    }


def p_value(differences, images: int) -> float:
    """Two-sided p-value of drawn differences: twice the share of them on the far side of 0, never 0 itself.

    Nor is it below the p-value of a sign test on so many images that all point one way, 2 / 2^images: a bootstrap of
    few images is too sure.
    """
    import numpy as np

    differences = differences[np.isfinite(differences)]
    fewer = min((differences <= 1e-12).sum(), (differences >= -1e-12).sum())  # sums are rounded
    return float(min(1.0, max(2 * (1 + fewer) / (1 + len(differences)), 2.0 ** (1 - images))))


def _sums(values, of_unit, units: int):
    """Sums `[units, C]` of values `[records, C]`."""
    import numpy as np

    return np.stack([np.bincount(of_unit, column, minlength=units) for column in np.asarray(values).T], axis=1)


def _drawn_sums(columns):
    """Sums of the rows `[images, C]` of each draw, `[RESAMPLES, C]`."""
    import numpy as np

    random = np.random.default_rng(SEED)
    images, rows = len(columns), max(1, _AT_ONCE // len(columns))
    sums = []
    for start in range(0, RESAMPLES, rows):
        draws = min(rows, RESAMPLES - start)
        drawn = random.integers(images, size=(draws, images)) + np.arange(draws)[:, None] * images
        times = np.bincount(drawn.ravel(), minlength=draws * images).reshape(draws, images)
        sums.append(times.astype(float) @ columns)
    return np.concatenate(sums)
