"""Scores against scikit-learn, intervals and sizes against their definitions."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from eval.probing import metrics
from eval.probing.labels import LABELS, pack, unpack

IMAGES, PLACES, CLASSES = 7, 300, 5  # more places than a byte counts


@pytest.fixture(params=LABELS)
def case(request):
    """Kind, logits and labels in which class 3 never occurs and class 4 occurs but is never found."""
    kind = request.param
    generator = torch.Generator().manual_seed(0)
    places = 1 if kind == "global-union" else PLACES
    logits = torch.randn(IMAGES, places, CLASSES, generator=generator)
    logits[..., 4] = -9.0
    if kind == "majority":
        labels = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (IMAGES, places), generator=generator)]
    else:
        labels = (torch.rand(IMAGES, places, CLASSES, generator=generator) < 0.3).to(torch.uint8)
        labels[..., 3] = 0
        labels[0, 0] = torch.tensor([1, 1, 1, 0, 1], dtype=torch.uint8)
    return kind, logits, labels


def as_sklearn(kind, logits, labels):
    if kind == "majority":
        return labels.flatten().numpy(), logits.argmax(-1).flatten().numpy()
    return labels.flatten(0, 1).numpy(), (logits.sigmoid() > 0.5).flatten(0, 1).numpy().astype(int)


def test_scores_are_scikit_learns(case):
    kind, logits, labels = case
    counts = metrics.count_hits(logits, labels, kind)
    found = metrics.scores(counts.sum(0).numpy(), IMAGES * logits.shape[1], kind)
    true, predicted = as_sklearn(*case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"labels": range(CLASSES), "zero_division": np.nan}
        precision, recall, _, there = sk.precision_recall_fscore_support(true, predicted, average=None, **options)
        micro = sk.precision_recall_fscore_support(true, predicted, average="micro", **options)
        zeros = sk.precision_recall_fscore_support(true, predicted, labels=range(CLASSES), zero_division=0)
    np.testing.assert_allclose(found["class_recall"], recall)
    np.testing.assert_allclose(found["class_precision"], precision)
    occur = there > 0
    np.testing.assert_allclose(found["macro_recall"], recall[occur].mean())
    np.testing.assert_allclose(found["macro_precision_or_0"], zeros[0][occur].mean())
    np.testing.assert_allclose(found["macro_f1_or_0"], zeros[2][occur].mean(), rtol=1e-5)  # 1e-6 in its denominator
    np.testing.assert_allclose([found["micro_precision"], found["micro_recall"]], micro[:2])
    np.testing.assert_allclose(found["micro_f1"], micro[2], rtol=1e-5)
    assert np.isnan(found["macro_precision"]) and np.isnan(found["macro_f1"]), "class 4 occurs and is never found"
    each = sk.multilabel_confusion_matrix(true, predicted, labels=range(CLASSES))
    np.testing.assert_allclose(found["class_accuracy"], each.diagonal(axis1=1, axis2=2).sum(1) / each[0].sum())
    accuracy = sk.accuracy_score(true, predicted) if kind == "majority" else (true == predicted).mean()
    np.testing.assert_allclose(found["accuracy"], accuracy)
    as_json = metrics.jsonable(found)
    assert as_json["macro_precision"] is None and isinstance(as_json["macro_recall"], float)


def test_counts_do_not_depend_on_batches(case):
    kind, logits, labels = case
    whole = metrics.count_hits(logits, labels, kind)
    parts = [metrics.count_hits(logits[i : i + 2], labels[i : i + 2], kind) for i in range(0, IMAGES, 2)]
    assert torch.equal(torch.cat(parts), whole)


def test_labels_survive_packing(case):
    kind, _, labels = case
    small = pack(labels.numpy() if kind == "majority" else labels.bool().numpy())
    assert small.dtype == np.uint8 and small.size <= labels.numel()
    assert torch.equal(unpack(torch.from_numpy(small), CLASSES, kind), labels)


def test_sizes_by_their_definition():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 40, CLASSES, generator=generator)
    share = torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0])  # bounds belong to the bucket below
    labels = (torch.arange(40)[:, None] < (share * 40).round()).to(torch.uint8).expand(6, -1, -1)
    sums, places = metrics.by_size(metrics.count_hits(logits, labels, "union"), 40, buckets=10)
    expected = np.zeros((10, 3), int)
    cells = np.zeros(10, int)
    for image in range(6):
        for c, bucket in enumerate([0, 0, 2, 5, 9]):
            there, found = labels[image, :, c].bool(), logits[image, :, c].sigmoid() > 0.5
            expected[bucket] += [int((there & found).sum()), int(found.sum()), int(there.sum())]
            cells[bucket] += 40
    assert np.array_equal(sums[..., 0], expected) and np.array_equal(places, cells)


def test_intervals_hold_the_score_and_shrink_with_more_images(case):
    kind, logits, labels = case
    counts = metrics.count_hits(logits, labels, kind)
    points = metrics.jsonable(metrics.scores(counts.sum(0).numpy(), IMAGES * logits.shape[1], kind))
    few = metrics.intervals(counts, logits.shape[1], kind)
    many = metrics.intervals(counts.repeat(20, 1, 1), logits.shape[1], kind)
    assert few.keys() == points.keys() and few["macro_precision"] is None
    for name in ("macro_recall", "micro_f1", "accuracy"):
        assert few[name] == metrics.intervals(counts, logits.shape[1], kind)[name], "the seed decides"
        low, high = many[name]
        assert low <= points[name] <= high
        ratio = (few[name][1] - few[name][0]) / (high - low)
        assert 20**0.5 / 2 < ratio < 20**0.5 * 2, "like the root of the number of images"


def test_an_interval_is_that_of_the_bootstrap():
    """The share of successes among images that hold one place each is a mean; its bootstrap is scipy's."""
    from scipy.stats import bootstrap

    there = (np.random.default_rng(0).random(200) < 0.4).astype(float)
    counts = torch.zeros(200, 3, 1, dtype=torch.long)
    counts[:, 2] = 1
    counts[:, 0, 0] = counts[:, 1, 0] = torch.from_numpy(there).long()
    ours = metrics.intervals(counts, 1, "union")["macro_recall"]
    theirs = bootstrap((there,), np.mean, method="percentile", n_resamples=5000).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.012)
    assert sum(metrics.INTERVAL) == 100 and metrics.INTERVAL[1] - metrics.INTERVAL[0] == 95  # percentiles


def test_reliability_is_scikit_learns(case):
    kind, logits, labels = case
    counts = metrics.reliability(logits, labels, kind)
    assert counts.shape[2] == 10  # bins, as docs/probe.md says
    probability = (logits.softmax(-1) if kind == "majority" else logits.sigmoid())[..., 0].flatten().numpy()
    there = ((labels == 0) if kind == "majority" else labels[..., 0]).flatten().numpy().astype(int)
    number, total, right = counts[:, 0][:, counts[0, 0] > 0].numpy()
    share, mean = calibration_curve(there, probability, n_bins=metrics.RELIABILITY_BINS)
    np.testing.assert_allclose(right / number, share, rtol=1e-6)
    np.testing.assert_allclose(total / number, mean, rtol=1e-6)
    error = (number * np.abs(share - mean)).sum() / number.sum()
    np.testing.assert_allclose(metrics.calibration_error(counts)[0], error, rtol=1e-6)


def test_reliability_has_a_row_a_class():
    logits = torch.tensor([[[-9.0, 9.0, 9.0]] * 2])  # an image of two patches, three classes
    counts = metrics.reliability(logits, torch.tensor([[[0, 1, 0]] * 2]), "union")
    assert counts.shape == (3, 3, metrics.RELIABILITY_BINS)
    assert counts[0, :, 0].tolist() == [2, 0, 0] and counts[0, :, -1].tolist() == [0, 2, 2]
    assert counts[2].sum(-1).tolist() == [0, 2, 0]


def test_loss_against_its_formula(case):
    kind, logits, labels = case
    if kind == "majority":
        expected = -logits.log_softmax(-1).gather(-1, labels[..., None]).mean()
    else:
        p, y = logits.double().sigmoid(), labels.double()
        expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean().float()
    torch.testing.assert_close(metrics.probe_loss(logits, labels, kind), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("places", [1019, 1020, 1021, 1300, 2601])
def test_every_place_is_counted_however_many_are_marked(places):
    logits = torch.ones(2, places, CLASSES)
    labels = torch.ones(2, places, CLASSES, dtype=torch.uint8)
    assert torch.equal(metrics.count_hits(logits, labels, "union"), torch.full((2, 3, CLASSES), places))
