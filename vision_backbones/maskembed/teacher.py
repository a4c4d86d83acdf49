"""The frozen model whose view of masked images is what the student learns to predict."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from vision_backbones.maskembed.masked_forward import masked_features


class Teacher(nn.Module):
    """A frozen ViT that gives targets, scaled by `scale` (1 until set; see `unit_scale`).

    Args:
        vit: A timm ViT; it is cut and frozen.
        skip_blocks: Blocks left out at the end; the final norm still applies.
        prefix_only: Give prefix tokens alone.

    Raises:
        ValueError: `prefix_only` without prefix tokens, or no block is left.
    """

    def __init__(self, vit: nn.Module, *, skip_blocks: int = 1, prefix_only: bool = False):
        super().__init__()
        if not 0 <= skip_blocks < len(vit.blocks):
            raise ValueError(f"teacher_skip_blocks is {skip_blocks}: expected 0 to {len(vit.blocks) - 1}")
        if prefix_only and not vit.num_prefix_tokens:
            raise ValueError("prefix_only needs a teacher with prefix tokens, this one has none (SigLIP, for one)")
        vit.prune_intermediate_layers([len(vit.blocks) - 1 - skip_blocks], prune_head=True)
        self.vit = vit.requires_grad_(False).eval()
        self.prefix_only = prefix_only
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """Targets `[B * R, tokens, D]` in float32 for pixels `[B, 3, H, W]` seen through masks `[B * R, patches]`.

        Without masks, `[B, tokens, D]` for the whole images.
        """
        tokens = self.vit.forward_features(pixels) if masks is None else masked_features(self.vit, pixels, masks)
        return (tokens[:, : self.vit.num_prefix_tokens] if self.prefix_only else tokens).float() * self.scale

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode."""
        return super().train(False)


def moments(values: torch.Tensor) -> torch.Tensor:
    """Count, mean and population variance of all elements, float64 `[3]` on CPU; see `merge_moments`."""
    variance, mean = torch.var_mean(values.float(), correction=0)
    return torch.tensor([values.numel(), mean.item(), variance.item()], dtype=torch.float64)


def merge_moments(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Moments of everything, from the moments `[3]` of its parts (Chan et al., 1979); exact in one pass."""
    counts, means, variances = torch.stack(list(parts)).unbind(1)
    total = counts.sum()
    mean = (counts * means).sum() / total
    return torch.stack([total, mean, (counts * (variances + (means - mean) ** 2)).sum() / total])


def unit_scale(variance: float) -> float:
    """What targets are multiplied by so that their variance, the loss of predicting their mean, becomes 1.

    Raises:
        ValueError: The targets do not vary.
    """
    if not variance > 0 or not math.isfinite(variance):
        raise ValueError(
            f"the teacher's targets have variance {variance}: it carries no training signal; check its weights"
        )
    return variance**-0.5
