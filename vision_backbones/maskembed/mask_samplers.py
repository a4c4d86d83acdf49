"""Which patches of an image stay visible: three samplers, with complements and an unmasked row.

All give bool `[images * rows, patches]`, True where a patch is kept. The rows of an image are consecutive: a drawn mask
`m`, its complement `1 - m` if `antithetical`, and all ones if `null`.
"""

import math

import numpy as np
import torch

from vision_backbones.maskembed.reference_quirks import blockwise_rows
from vision_backbones.names import suggest

MIN_BLOCK = 16  # patches; BEiT's smallest block
ASPECTS = (0.3, 1 / 0.3)


def sample_masks(
    rng: np.random.Generator,
    images: int,
    patches: int,
    *,
    sampler: str = "uniform",
    keep_ratio: float = 0.5,
    antithetical: bool = True,
    null: bool = True,
    as_reference: bool = False,
) -> torch.Tensor:
    """Masks of `images` images, bool `[images * rows, patches]`; True keeps a patch.

    Args:
        rng: What is drawn depends on it alone.
        images: Number of images.
        patches: Patches of an image.
        sampler: `uniform` draws the share of kept patches uniformly from [0, 1], then each patch with it (the paper's
            choice); `bernoulli` keeps every patch with probability `keep_ratio`; `blockwise` adds rectangles until at
            least `keep_ratio` of a square grid is kept.
        keep_ratio: Share of kept patches; `uniform` does not use it.
        antithetical: Follow every mask by its complement.
        null: End an image's masks with one that keeps everything.
        as_reference: Complete block-wise masks by `reference_quirks.blockwise_rows`.

    Raises:
        ValueError: The sampler is unknown, or blocks do not fit the grid.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown mask sampler {sampler!r}: {suggest(sampler, SAMPLERS)}")
    rows = 1 + antithetical + null
    masks = SAMPLERS[sampler](rng, images, rows, patches, keep_ratio)
    if as_reference and sampler == "blockwise":
        return torch.from_numpy(blockwise_rows(masks, antithetical))
    if antithetical:
        masks[1::rows] = ~masks[::rows]
    if null:
        masks[rows - 1 :: rows] = True
    return torch.from_numpy(masks)


def _uniform(rng, images: int, rows: int, patches: int, keep_ratio: float) -> np.ndarray:
    values = rng.uniform(size=(images * rows, patches + 1))
    return values[:, 1:] > values[:, :1]


def _bernoulli(rng, images: int, rows: int, patches: int, keep_ratio: float) -> np.ndarray:
    return rng.uniform(size=(images * rows, patches)) < keep_ratio


def _blockwise(rng, images: int, rows: int, patches: int, keep_ratio: float) -> np.ndarray:
    """Draws an image's first row only; the others stay all False."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"blockwise masks need a square grid, this one has {patches} patches: use uniform or bernoulli"
        )
    largest = int(keep_ratio * patches)
    if largest <= MIN_BLOCK:
        raise ValueError(
            f"blockwise masks of {keep_ratio} x {patches} patches cannot hold a block of {MIN_BLOCK}: "
            f"raise keep_ratio above {(MIN_BLOCK + 1) / patches:.2f}, or use uniform or bernoulli"
        )
    masks = np.zeros((images, rows, side, side), dtype=bool)
    for mask in masks[:, 0]:
        while mask.mean() < keep_ratio:
            area, aspect = rng.integers(MIN_BLOCK, largest), rng.uniform(*ASPECTS)
            width = min(int(math.sqrt(area / aspect)), side)
            height = min(int(area / width), side)
            x, y = rng.integers(0, side - width + 1), rng.integers(0, side - height + 1)
            mask[x : x + width, y : y + height] = True
    return masks.reshape(images * rows, patches)


SAMPLERS = {"uniform": _uniform, "bernoulli": _bernoulli, "blockwise": _blockwise}
