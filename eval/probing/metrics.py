"""Loss and scores of patch probing; everything is derived from counts per image and class.

Counts are int64 `[images, 3, C]`: places (patches, or the image itself for `global-union`) of a class that are rightly
found, found, and there. Sums over images give scores, random sums over images their intervals, and the third count
the size of an object. A score that is not defined (0 / 0) is nan; in results.json it is None.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

SIZE_BUCKETS = 10  # of equal width in the share of the image's patches
RELIABILITY_BINS = 10  # of equal width in probability
RESAMPLES = 1000
FITS = 4 * 255  # rows whose sum fits the bytes that they are added in
INTERVAL = (2.5, 97.5)  # percentiles


def probe_loss(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean loss of logits `[B, N, C]`: cross-entropy for `majority` `[B, N]`, else binary cross-entropy."""
    if kind == "majority":
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels.reshape(logits.shape).to(logits.dtype))


def count_hits(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Counts of a batch, int64 `[B, 3, C]` on CPU; a class is found where its probability is above 0.5, or greatest.

    Args:
        logits: `[B, N, C]`.
        labels: `[B, N]` for `majority`, else `[B, N, C]` or, where N is 1, `[B, C]`; any of N may be rows and columns.
        kind: Of the labels.
    """
    logits = logits.detach()
    images, _, classes = logits.shape
    if kind == "majority":
        there = labels.reshape(images, -1)
        found = logits.argmax(-1)
        row = torch.arange(images, device=logits.device)[:, None] * classes
        cells = [(row + there)[found == there], row + found, row + there]
        counts = [torch.bincount(c.flatten(), minlength=images * classes).view(images, classes) for c in cells]
        return torch.stack(counts, 1).cpu()
    # numpy compares and adds several times as fast as torch does on CPU
    found = logits.numpy() > 0 if logits.device.type == "cpu" else (logits > 0).cpu().numpy()
    there = labels.reshape(logits.shape).to("cpu", torch.uint8).numpy()
    found = found.view(np.uint8)
    return torch.from_numpy(np.stack([_total(found & there), _total(found), _total(there)], 1))


def _total(marks: np.ndarray) -> np.ndarray:
    """Sums of 0 and 1 `[B, N, C]` over N, int64; four rows are added at once, as the bytes of wider integers."""
    images, places, classes = marks.shape
    total = np.zeros((images, classes), np.int64)
    for start in range(0, places, FITS):
        part = marks[:, start : start + FITS]
        fours = part.shape[1] // 4
        wide = np.ascontiguousarray(part[:, : fours * 4]).reshape(images, fours, classes * 4).view(np.uint32)
        total += np.add.reduce(wide, 1, np.uint32).view(np.uint8).reshape(images, 4, classes).sum(1, np.int64)
        total += part[:, fours * 4 :].sum(1, np.int64)
    return total


def scores(counts: np.ndarray, places: float | np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Returns scores of summed counts `[..., 3, C]`, each `[...]`, and `class_*`, each `[..., C]`.

    Macro scores are means over the classes that occur. As in the paper's code, `macro_precision` and `macro_f1` are
    nan as soon as one of these is never found; in `macro_precision_or_0` and `macro_f1_or_0` it counts as 0. Micro
    scores pool all classes; `accuracy` is the share of right decisions, one a class and place, or for `majority` one
    a place.

    Args:
        counts: Rightly found, found, and there.
        places: How many there are, `[...]`.
        kind: Of the labels.
    """
    right, found, there = np.moveaxis(counts.astype(np.float64), -2, 0)
    places = np.asarray(places, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = right / there, right / found
        wrong = found + there - 2 * right
        accuracy = 1 - wrong / places[..., None]
        occurs = there > 0

        def macro(values: np.ndarray) -> np.ndarray:
            return np.where(occurs, values, 0).sum(-1) / occurs.sum(-1)

        f1 = _f1(precision, recall)
        micro_recall, micro_precision = right.sum(-1) / there.sum(-1), right.sum(-1) / found.sum(-1)
        return {
            "accuracy": right.sum(-1) / places if kind == "majority" else accuracy.mean(-1),
            "macro_accuracy": macro(accuracy),
            "macro_recall": macro(recall),
            "macro_precision": macro(precision),
            "macro_f1": macro(f1),
            "macro_precision_or_0": macro(np.nan_to_num(precision)),
            "macro_f1_or_0": macro(np.nan_to_num(f1)),
            "micro_recall": micro_recall,
            "micro_precision": micro_precision,
            "micro_f1": _f1(micro_precision, micro_recall),
            "class_recall": recall,
            "class_precision": precision,
            "class_f1": f1,
            "class_accuracy": accuracy,
        }


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return 2 * precision * recall / (precision + recall + 1e-6)


def by_size(counts: torch.Tensor, places: int, buckets: int = SIZE_BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts of every size of objects, int64 `[buckets, 3, 1]`, and how many places they are of, `[buckets]`.

    A class in an image has the size of its share of the places: bucket i holds shares above `i / buckets`, up to
    `(i + 1) / buckets`; what is not in the image is in the first.
    """
    bounds = torch.linspace(0, 1, buckets + 1)[1:-1]
    bucket = torch.bucketize(counts[:, 2].float() / places, bounds).flatten()
    sums = torch.zeros(buckets, 3, dtype=torch.long).index_add_(0, bucket, counts.transpose(1, 2).reshape(-1, 3))
    return sums[..., None].numpy(), torch.bincount(bucket, minlength=buckets).numpy() * places


def intervals(counts: torch.Tensor, places: int, kind: str, seed: int = 0) -> dict[str, list[float] | None]:
    """Returns the 95 % bootstrap interval of every score that is a number, over images; None where a resample has none.

    Percentiles of the scores of `RESAMPLES` random draws of as many images, with replacement.
    """
    images = len(counts)
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    flat = counts.reshape(images, -1).numpy().astype(np.float64)
    sums = (draws.astype(np.float64) @ flat).reshape(RESAMPLES, *counts.shape[1:])
    found = scores(sums, np.full(RESAMPLES, images * places), kind)
    return {
        name: np.percentile(values, INTERVAL).tolist() if np.isfinite(values).all() else None
        for name, values in found.items()
        if not name.startswith("class_")
    }


def reliability(logits: torch.Tensor, labels: torch.Tensor, kind: str) -> torch.Tensor:
    """Returns for each class and bin of probability, float64 `[3, C, bins]`: predictions, probabilities, hits."""
    classes = logits.shape[-1]
    if kind == "majority":
        there = F.one_hot(labels.reshape(logits.shape[:-1]), classes)
        probability = logits.float().softmax(-1)
    else:
        there, probability = labels.reshape(logits.shape), logits.float().sigmoid()
    bins = (probability * RELIABILITY_BINS).long().clamp(max=RELIABILITY_BINS - 1)
    cells = (torch.arange(classes, device=logits.device) * RELIABILITY_BINS + bins).flatten()
    size = classes * RELIABILITY_BINS
    weights = (None, probability.double().flatten(), there.double().flatten())
    sums = [torch.bincount(cells, weights=w, minlength=size).double() for w in weights]
    return torch.stack(sums).view(3, classes, RELIABILITY_BINS).cpu()


def calibration_error(counts: torch.Tensor) -> np.ndarray:
    """Returns the expected calibration error of every class from counts of `reliability`, `[C]`."""
    number, probability, right = counts.numpy()
    return np.abs(probability - right).sum(-1) / number.sum(-1)


def jsonable(values: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Returns the scores that are numbers, None for those that are not defined; without those of classes."""
    return {
        name: None if math.isnan(value) else float(value)
        for name, value in values.items()
        if not name.startswith("class_")
    }
