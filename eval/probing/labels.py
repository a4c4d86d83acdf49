"""Labels of patches, from labels of pixels; no loop over patches or classes."""

import math
from functools import lru_cache

import numpy as np
import torch

from vision_backbones.names import suggest

LABELS = ("union", "majority", "global-union")


def check_labels(kind: str) -> None:
    """Raises ValueError for an unknown kind of labels."""
    if kind not in LABELS:
        raise ValueError(f"unknown labels '{kind}': {suggest(kind, LABELS)}")


def reduce_labels(label_map: np.ndarray, patch: int, num_classes: int, kind: str) -> np.ndarray:
    """Returns what the patches of a label map hold; pixels beyond the last whole patch do not count.

    Args:
        label_map: Class of every pixel, integers `[H, W]`; class 0 belongs to none.
        patch: Side of a patch in pixels.
        num_classes: C.
        kind: `union`, bool `[H / patch, W / patch, C]`: the classes that own any pixel of the patch, 0 only when it is
            alone. `majority`, int64 `[H / patch, W / patch]`: the class with most pixels, of equal ones the smallest.
            `global-union`, bool `[C]`: the classes that own any pixel, 0 like any other.

    Raises:
        ValueError: The kind is unknown, a label is out of range, or no patch fits.
    """
    check_labels(kind)
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels are {low} to {high}, expected 0 to {num_classes - 1}: does it belong to another set?")
    rows, columns = (side // patch for side in label_map.shape)
    if not rows or not columns:
        raise ValueError(f"a label map of {label_map.shape} pixels holds no patch of {patch}: resize it first")
    inner = label_map[: rows * patch, : columns * patch]
    if kind == "global-union":
        return np.bincount(inner.ravel(), minlength=num_classes) > 0
    cells = _cells(rows, columns, patch, num_classes)
    shape = (rows, columns, num_classes)
    if kind == "majority":
        return np.bincount((cells + inner).ravel(), minlength=math.prod(shape)).reshape(shape).argmax(-1)
    # A pixel like its left or upper neighbour in the patch tells nothing new; few others are left.
    new, below = np.empty(inner.shape, bool), np.empty(inner.shape, bool)
    np.not_equal(inner[:, 1:], inner[:, :-1], out=new[:, 1:])
    np.not_equal(inner[1:], inner[:-1], out=below[1:])
    new[:, ::patch] = below[::patch] = True
    new &= below
    at = np.flatnonzero(new)
    present = np.zeros(shape, bool)
    present.reshape(-1)[cells.reshape(-1)[at] + inner.reshape(-1)[at]] = True
    unlabeled = np.nonzero(present[..., 0])
    present[(*unlabeled, 0)] = ~present[..., 1:][unlabeled].any(-1)
    return present


@lru_cache(maxsize=8)
def _cells(rows: int, columns: int, patch: int, num_classes: int) -> np.ndarray:
    """Where the labels of a pixel's patch begin in an array `[rows, columns, C]`, for every pixel."""
    first = np.arange(rows * columns).reshape(rows, columns) * num_classes
    return first.repeat(patch, 0).repeat(patch, 1)


def pack(labels: np.ndarray) -> np.ndarray:
    """Returns labels in the fewest bytes: eight classes a byte along the last axis, or uint8 class numbers."""
    return np.packbits(labels, axis=-1, bitorder="little") if labels.dtype == bool else labels.astype(np.uint8)


def unpack(packed: torch.Tensor, num_classes: int, kind: str) -> torch.Tensor:
    """Returns labels that `pack` made small, on their device: int64 for `majority`, else uint8 0 or 1 `[..., C]`."""
    if kind == "majority":
        return packed.long()
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> bits) & 1).flatten(-2)[..., :num_classes]
