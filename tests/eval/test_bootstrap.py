"""Bootstrap over images, against formulas and scipy."""

import numpy as np
import pytest
from scipy import stats

from eval.scoring.bootstrap import (
    RESAMPLES,
    bootstrap_interval,
    interval,
    intervals,
    p_value,
    resample,
)


def clustered(images: int, questions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which those of one image are alike, and their images; numbers of questions differ."""
    rng = np.random.default_rng(seed)
    image_of = np.concatenate([np.full(rng.integers(1, 2 * questions), i) for i in range(images)])
    skill = rng.beta(0.6, 0.9, images)
    return (rng.random(len(image_of)) < skill[image_of]).astype(float), image_of


def sums(scores, image_of):
    return np.bincount(image_of, scores), np.bincount(image_of)


def records(scores, image_of, subsets=None):
    subsets = [""] * len(scores) if subsets is None else subsets
    return [{"score": s, "image": f"{i}.jpg", "subset": k} for s, i, k in zip(scores, image_of, subsets, strict=True)]


def test_interval_against_scipy_and_the_clustered_standard_error():
    scores, image_of = clustered(300, 9)
    low, high = bootstrap_interval(scores, image_of)
    total, count = sums(scores, image_of)

    def ratio(s, n, axis):
        return s.sum(axis) / n.sum(axis)

    found = stats.bootstrap(
        (total, count), ratio, paired=True, vectorized=True, method="percentile", n_resamples=5000, rng=1
    ).confidence_interval
    width = found.high - found.low
    assert (low, high) == pytest.approx((found.low, found.high), abs=0.05 * width)

    mean = scores.mean()
    error = np.sqrt(((total - mean * count) ** 2).sum()) / len(scores)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)
    naive = np.sqrt(mean * (1 - mean) / len(scores))
    assert high - low > 1.5 * 2 * 1.96 * naive  # as if questions were independent it would be far too narrow


def test_interval_of_independent_questions_is_the_binomial_one():
    right = np.arange(400) < 120
    low, high = bootstrap_interval(right, np.random.default_rng(0).permutation(400))
    exact = stats.binom(400, 0.3)
    assert low == pytest.approx(exact.ppf(0.025) / 400, abs=0.005)
    assert high == pytest.approx(exact.ppf(0.975) / 400, abs=0.005)


def test_asking_the_same_again_makes_nothing_surer():
    scores, image_of = clustered(80, 3)
    once = bootstrap_interval(scores, image_of)
    assert bootstrap_interval(np.tile(scores, 5), np.tile(image_of, 5)) == pytest.approx(once, abs=1e-12)
    assert bootstrap_interval(scores, image_of) == once  # seeded
    with pytest.raises(ValueError, match="two groups or more"):
        bootstrap_interval([1.0, 0.0], ["a", "a"])


def test_mean_over_subsets_of_unequal_sizes():
    scores, image_of = clustered(200, 9, seed=3)
    rng = np.random.default_rng(4)
    kind = rng.choice(3, len(scores), p=[0.7, 0.2, 0.1])
    values = resample([records(scores, image_of, [f"kind{k}" for k in kind])])[0]
    means = [scores[kind == k].mean() for k in range(3)]
    assert values["mean_accuracy"][0] == pytest.approx(np.mean(means), abs=1e-12)
    assert [values[f"accuracy/kind{k}"][0] for k in range(3)] == pytest.approx(means, abs=1e-12)
    # linearised: what each image adds to the mean of three ratios
    added = sum(
        np.bincount(image_of, (scores - means[k]) * (kind == k), minlength=200) / (3 * (kind == k).sum())
        for k in range(3)
    )
    low, high = interval(values["mean_accuracy"][1])
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt((added**2).sum()), rel=0.06)


def test_intervals_only_of_what_is_a_mean_of_scores():
    rows = records([1.0, 0.0, 1.0, 1.0], ["a", "b", "c", "c"], ["x", "x", "y", "y"])
    metrics = {"accuracy": 0.75, "accuracy/x": 0.5, "accuracy/y": 1.0, "f1": 0.8, "roc_auc": None}
    found = intervals(rows, metrics, "accuracy")
    assert set(found) == {"accuracy", "accuracy/x", "accuracy/y"}
    assert found["accuracy/y"] is None  # of one image
    assert found["accuracy"][0] < 0.75 < found["accuracy"][1]
    assert "f1" not in intervals(rows, metrics, "f1")
    assert intervals(rows, {"my_score": 0.75}, "my_score") == {"my_score": found["accuracy"]}
    assert intervals(rows, {"mean_accuracy": 0.75}, "mean_accuracy")["mean_accuracy"] is None
    assert intervals([], {"accuracy": None}, "accuracy") == {}


def test_p_values():
    scores, image_of = clustered(300, 4)
    rng = np.random.default_rng(5)
    flipped = np.where(rng.random(len(scores)) < 0.3, rng.random(len(scores)) < 0.5, scores).astype(float)
    first, second = (v["accuracy"] for v in resample([records(scores, image_of), records(flipped, image_of)]))
    difference = second[0] - first[0]
    total, count = sums(flipped - scores, image_of)
    error = np.sqrt(((total - difference * count) ** 2).sum()) / len(scores)
    drawn = second[1] - first[1]
    assert drawn.std() == pytest.approx(error, rel=0.05)  # paired: far less than of unpaired draws
    assert drawn.std() < 0.7 * np.hypot(first[1].std(), second[1].std())
    assert p_value(drawn, 300) == pytest.approx(2 * stats.norm.sf(abs(difference) / error), abs=0.03)

    same = resample([records(scores * 0.3, image_of)] * 2)  # 0.3: sums of it are rounded
    assert p_value(same[1]["accuracy"][1] - same[0]["accuracy"][1], 300) == 1
    better = resample([records(scores * 0, image_of), records(scores * 0 + 1, image_of)])
    assert p_value(better[1]["accuracy"][1] - better[0]["accuracy"][1], 300) == 2 / (RESAMPLES + 1)
    assert p_value(better[0]["accuracy"][1] - better[1]["accuracy"][1], 300) == 2 / (RESAMPLES + 1)
    few = resample(
        [records(np.zeros(9), [0, 0, 1, 1, 1, 2, 2, 2, 2]), records(np.ones(9), [0, 0, 1, 1, 1, 2, 2, 2, 2])]
    )
    assert p_value(few[1]["accuracy"][1] - few[0]["accuracy"][1], 3) == stats.binomtest(3, 3).pvalue


def test_p_values_of_equal_models_are_uniform():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image_of = np.repeat(np.arange(60), 3)
        runs = [records((rng.random(180) < 0.5).astype(float), image_of) for _ in range(2)]
        first, second = (v["accuracy"][1] for v in resample(runs))
        found.append(p_value(second - first, 60))
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) < 0.5) == pytest.approx(0.5, abs=0.2)
