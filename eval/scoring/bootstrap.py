"""How sure scores are: bootstrap over images, because the questions of one image are not independent.

Percentiles of the score of `RESAMPLES` random draws of as many images, with replacement and all questions of a drawn
image; seeded. Where all answers are equally good the interval has no width, however few they are.
"""

import math
from collections.abc import Sequence

from eval.data.selection import SEED
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
        "accuracy/SUBSET"; and "mean_accuracy", the mean over subsets, whatever their sizes. The draws are nan where a
        draw has no question of a subset, and everywhere where fewer than two images have one.
    """
    import numpy as np

    examples = runs[0]
    subsets = list(dict.fromkeys(r["subset"] for r in examples if r["subset"]))
    names = ["accuracy", *(f"accuracy/{subset}" for subset in subsets)]
    member = np.array([[True, *(r["subset"] == subset for subset in subsets)] for r in examples], dtype=float)
    images, image_of = np.unique([str(r["image"]) for r in examples], return_inverse=True)
    counts = _sums(member, image_of, len(images))
    scores = [_sums(member * [[r["score"]] for r in records], image_of, len(images)) for records in runs]
    columns = np.concatenate([counts, *scores], axis=1)
    total, drawn = columns.sum(0, keepdims=True), _drawn_sums(columns)
    few = (counts > 0).sum(0) < 2

    found = []
    for number in range(1, len(runs) + 1):
        part = slice(number * len(names), (number + 1) * len(names))
        with np.errstate(invalid="ignore"):
            means, draws = total[:, part] / total[:, : len(names)], drawn[:, part] / drawn[:, : len(names)]
        draws[:, few] = np.nan
        values = {name: (float(means[0, i]), draws[:, i]) for i, name in enumerate(names)}
        of_subsets = slice(1, None) if subsets else slice(None)
        values["mean_accuracy"] = float(means[0, of_subsets].mean()), draws[:, of_subsets].mean(1)
        found.append(values)
    return found


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


def _sums(values, image_of, images: int):
    import numpy as np

    return np.stack([np.bincount(image_of, column, minlength=images) for column in np.asarray(values).T], axis=1)


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
