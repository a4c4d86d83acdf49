"""Tokens of a vision backbone as the probe takes them: every token after the final norm, or a part, or their mean."""

import torch
from torch import nn

from vision_backbones import BackboneSpec
from vision_backbones.feature_maps import FeatureMapBackbone, patch_grid
from vision_backbones.vit import attention_heads, check_pixels, is_vit, layout, load_vit

KEEP = ("all", "prefix", "suffix", "mean")


class ProbedBackbone(nn.Module):
    """Tokens `[B, tokens, embed_dim]` of pixels `[B, 3 * parts, H, W]`: of the last block, after the final norm.

    Of a fused backbone, features are joined over channels, each part having its own summary with `prefix` and `mean`;
    since prefix tokens differ in number, `all` gives patches alone. Where a network gives a feature map, its places are
    the tokens: those of `FeatureMapBackbone`, without a final norm.

    Args:
        spec: A resolved spec.
        keep: `all` tokens; `prefix`, the mean of class token and registers (of all tokens where there are none);
            `suffix`, the patches; `mean`, of all tokens.
        skip_blocks: Blocks of a ViT left out at the end; the final norm still applies.
        pretrained: Load weights.

    Attributes:
        grid: Patch rows and columns.
        embed_dim: Channels of a token.
        num_heads: Attention heads.
        num_prefix_tokens: Of the backbone, in front of the patches with `all`.

    Raises:
        ValueError: On unknown `keep`, no block left, or weights that are not found or do not fit.
    """

    def __init__(self, spec: BackboneSpec, keep: str, *, skip_blocks: int = 0, pretrained: bool = True):
        super().__init__()
        if keep not in KEEP:
            raise ValueError(f"unknown tokens '{keep}': choose {', '.join(KEEP)}")
        self.spec, self.keep = spec, keep
        specs = spec.parts or (spec,)
        self.vits = nn.ModuleList(
            load_vit(part, pretrained=pretrained) if is_vit(part) else FeatureMapBackbone(part, pretrained=pretrained)
            for part in specs
        )
        for part, vit in zip(specs, self.vits, strict=True):
            depth = layout(part).depth if is_vit(part) else 1
            if not 0 <= skip_blocks < depth:
                raise ValueError(f"--skip_blocks is {skip_blocks}: expected 0 to {depth - 1} for {part.id}")
            if skip_blocks:
                vit.prune_intermediate_layers([depth - 1 - skip_blocks], prune_head=True)
        self.grid, self.patch = patch_grid(specs[0])
        self.embed_dim = sum(vit.embed_dim for vit in self.vits)
        self.num_heads = sum(
            attention_heads(vit) if is_vit(part) else vit.num_heads for part, vit in zip(specs, self.vits, strict=True)
        )
        self.num_prefix_tokens = 0 if spec.parts else self.vits[0].num_prefix_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens in the output."""
        if self.keep in ("prefix", "mean"):
            return 1
        return self.grid[0] * self.grid[1] + (self.num_prefix_tokens if self.keep == "all" else 0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the tokens.

        Raises:
            ValueError: If the pixels have another shape.
        """
        check_pixels(pixels, 3 * len(self.vits), self.spec.image_size)
        views = pixels.split(3, dim=1)
        return torch.cat([self._tokens(vit, view) for vit, view in zip(self.vits, views, strict=True)], dim=-1)

    def _tokens(self, vit: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        tokens = vit(pixels) if isinstance(vit, FeatureMapBackbone) else vit.forward_features(pixels)
        prefix = vit.num_prefix_tokens
        if self.keep == "suffix" or (self.keep == "all" and len(self.vits) > 1):
            return tokens[:, prefix:]
        if self.keep == "all":
            return tokens
        return (tokens[:, :prefix] if self.keep == "prefix" and prefix else tokens).mean(1, keepdim=True)
