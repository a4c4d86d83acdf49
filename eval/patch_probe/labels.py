"""Labels of patches, from labels of pixels; no loop over patches or classes."""

import numpy as np
import torch

from vision_backbones.spec import closest

LABELS = ("union", "majority", "global-union")


def check_labels(kind: str) -> None:
    """Raises ValueError for an unknown kind of labels."""
    if kind not in LABELS:
        raise ValueError(f"unknown labels '{kind}'{closest(kind, list(LABELS))}; choose {', '.join(LABELS)}")


def reduce_labels(label_map: np.ndarray, patch: int, num_classes: int, kind: str) -> np.ndarray:
    """Gives what the patches of a label map hold; pixels beyond the last whole patch do not count.

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
        raise ValueError(f"labels are {low} to {high}, expected 0 to {num_classes - 1}: is it the map of another set?")
    rows, columns = (side // patch for side in label_map.shape)
    if not rows or not columns:
        raise ValueError(f"a label map of {label_map.shape} pixels holds no patch of {patch}: resize it first")
    inner = label_map[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch)
    if kind == "global-union":
        return np.bincount(inner.ravel(), minlength=num_classes) > 0
    cells = np.arange(rows * columns, dtype=np.int32).reshape(rows, 1, columns, 1) * num_classes + inner
    pixels = np.bincount(cells.ravel(), minlength=rows * columns * num_classes).reshape(rows, columns, num_classes)
    if kind == "majority":
        return pixels.argmax(-1)
    present = pixels > 0
    present[..., 0] &= pixels[..., 0] == patch * patch
    return present


def pack(labels: np.ndarray) -> np.ndarray:
    """Gives labels in the fewest bytes: eight classes a byte along the last axis, or uint8 class numbers."""
    return np.packbits(labels, axis=-1, bitorder="little") if labels.dtype == bool else labels.astype(np.uint8)


def unpack(packed: torch.Tensor, num_classes: int, kind: str) -> torch.Tensor:
    """Gives labels that `pack` made small, on their device: int64 for `majority`, else uint8 0 or 1 `[..., C]`."""
    if kind == "majority":
        return packed.long()
    bits = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> bits) & 1).flatten(-2)[..., :num_classes]
