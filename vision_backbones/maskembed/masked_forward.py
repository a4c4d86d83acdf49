"""Showing a ViT masked images, at the price of embedding each image once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def has_separate_patches(vit: nn.Module) -> bool:
    """Whether patches are embedded without overlap, so that masking embeddings equals masking pixels."""
    projection = getattr(vit.patch_embed, "proj", None)
    return isinstance(projection, nn.Conv2d) and projection.stride == projection.kernel_size


def masked_features(vit: nn.Module, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Tokens of a timm ViT that sees the images through masks: what is hidden is zero in the normalised pixels.

    Equals `vit.forward_features(mask_pixels(...))`, but where patches do not overlap every image is embedded once.

    Args:
        vit: A timm ViT.
        pixels: Normalised, `[B, 3, H, W]`.
        masks: `[B * R, patches]`, True where a patch is visible; the rows of an image are consecutive.

    Returns:
        `[B * R, prefix + patches, D]`, after the final norm.
    """
    if not has_separate_patches(vit):
        return vit.forward_features(mask_pixels(pixels, masks, vit.patch_embed.grid_size, vit.patch_embed.patch_size))
    with _hidden_patches(vit.patch_embed, masks):
        return vit.forward_features(pixels)


@contextmanager
def _hidden_patches(patch_embed: nn.Module, masks: torch.Tensor) -> Iterator[None]:
    """While open, `patch_embed` repeats each image for its masks and gives hidden patches the embedding of zeros."""

    def hide(module: nn.Module, inputs: tuple, embedded: torch.Tensor) -> torch.Tensor:
        projection = module.proj
        nothing = embedded.new_zeros(embedded.shape[-1]) if projection.bias is None else projection.bias
        nothing = module.norm(nothing).to(embedded.dtype)
        repeated = embedded.repeat_interleave(len(masks) // len(embedded), dim=0)
        return torch.where(masks.bool().view(*repeated.shape[:-1], 1), repeated, nothing)

    handle = patch_embed.register_forward_hook(hide)
    try:
        yield
    finally:
        handle.remove()


def mask_pixels(
    pixels: torch.Tensor, masks: torch.Tensor, grid: tuple[int, int], patch: tuple[int, int]
) -> torch.Tensor:
    """The images as often as they have masks, zero in hidden patches and in the border that no patch covers.

    Args:
        pixels: `[B, 3, H, W]`.
        masks: `[B * R, rows * columns]`.
        grid: Rows and columns of patches.
        patch: Height and width of a patch in pixels.

    Returns:
        `[B * R, 3, H, W]`.
    """
    visible = masks.view(-1, 1, *grid).to(pixels.dtype)
    visible = visible.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)
    height, width = pixels.shape[-2:]
    visible = nn.functional.pad(visible, (0, width - visible.shape[-1], 0, height - visible.shape[-2]))
    return pixels.repeat_interleave(len(masks) // len(pixels), dim=0) * visible
