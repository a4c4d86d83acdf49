"""Which teacher and student fit together."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vision_backbones.factory import check_spec
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import Tensor


def check_pair(
    teacher: str,
    student: str | None,
    soft_cap: float | None,
    suffix: str = "aligned",
    image_size: int | None = None,
) -> tuple[BackboneSpec, BackboneSpec]:
    """Specs of a teacher and of the student that learns from it; reads no weights.

    The student's spec is that of the aligned backbone it becomes: soft-capped, features after the final norm.

    Args:
        teacher: Registered id, `timm:<timm id>` or run.
        student: Likewise; the teacher if None.
        soft_cap: Bound of the student's attention logits; None leaves them free.
        suffix: Of the id that the student becomes.
        image_size: Side of the input of both in pixels, instead of their own; position embeddings are interpolated.

    Raises:
        ValueError: A name is unknown or fused, or the two do not see the same pixels on the same grid.
    """
    from vision_backbones.vit import layout

    taught = check_spec(teacher, image_size=image_size)
    learner = check_spec(student or teacher, image_size=image_size)
    for spec in (taught, learner):
        if spec.parts:
            raise ValueError(f"'{spec.id}' is fused: align its parts one by one, e.g. '{spec.parts[0].id}'")
        if layout(spec).hybrid:
            raise ValueError(
                f"'{spec.id}' is a hybrid: its patches come from a convolutional network that looks across them, so "
                "that none can be hidden; choose a ViT that embeds each patch by itself"
            )
    grids = [layout(spec).grid for spec in (taught, learner)]
    if grids[0] != grids[1] or taught.image_size != learner.image_size:
        shown = [
            f"'{spec.id}' {grid[0]} x {grid[1]} patches of a {spec.image_size} px image"
            for spec, grid in zip((taught, learner), grids, strict=True)
        ]
        raise ValueError(
            f"teacher {shown[0]}, student {shown[1]}: a mask must mean the same to both; choose backbones of one patch "
            "and image size, or give both one image_size"
        )
    if (taught.mean, taught.std) != (learner.mean, learner.std):
        raise ValueError(
            f"teacher '{taught.id}' wants pixels normalised with mean {taught.mean} and std {taught.std}, student "
            f"'{learner.id}' with {learner.mean} and {learner.std}: register the student with the teacher's"
        )
    id = f"{learner.id.removeprefix('timm:').removesuffix(f'-{suffix}')}-{suffix}"
    aligned = dataclasses.replace(learner, id=id, soft_cap=soft_cap, aligned=True)
    return taught, check_spec(aligned)


def mask_sampler(spec: BackboneSpec, *, as_reference: bool, **sampling) -> Callable[[np.random.Generator], "Tensor"]:
    """A picklable function that draws the masks `[R, patches]` of one image, for the patch grid of `spec`.

    Raises:
        ValueError: As `sample_masks`.
    """
    from vision_backbones.vit import layout

    rows, columns = layout(spec).grid
    masks = partial(sample_masks, images=1, patches=rows * columns, as_reference=as_reference, **sampling)
    masks(np.random.default_rng(0))  # what cannot be sampled fails here
    return masks
