"""Tokens of a vision backbone as the probe takes them: every token after the final norm, or a part, or their mean."""

import torch
from torch import nn

from vision_backbones import BackboneSpec
from vision_backbones.vit import check_pixels, load_vit

KEEP = ("all", "prefix", "suffix", "mean")


class ProbedBackbone(nn.Module):
    """Tokens `[B, tokens, embed_dim]` of pixels `[B, 3 * parts, H, W]`: of the last block, after the final norm.

    Of a fused backbone, features are joined over channels, each part having its own summary with `prefix` and `mean`;
    since prefix tokens differ in number, `all` gives patches alone.

    Args:
        spec: A resolved spec.
        keep: `all` tokens; `prefix`, the mean of class token and registers (of all tokens where there are none);
            `suffix`, the patches; `mean`, of all tokens.
        skip_blocks: Blocks left out at the end; the final norm still applies.
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
        self.vits = nn.ModuleList(load_vit(part, pretrained=pretrained) for part in spec.parts or (spec,))
        for vit in self.vits:
            if not 0 <= skip_blocks < len(vit.blocks):
                raise ValueError(f"--skip_blocks is {skip_blocks}: expected 0 to {len(vit.blocks) - 1} for {spec.id}")
            vit.prune_intermediate_layers([len(vit.blocks) - 1 - skip_blocks], prune_head=True)
        grids = [tuple(vit.patch_embed.grid_size) for vit in self.vits]
        if len(set(grids)) > 1:
            raise ValueError(f"backbone '{spec.id}': parts must share one patch grid, got {grids}")
        self.grid = grids[0]
        self.patch = self.vits[0].patch_embed.feat_ratio()
        self.embed_dim = sum(vit.embed_dim for vit in self.vits)
        self.num_heads = sum(vit.blocks[0].attn.num_heads for vit in self.vits)
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
        tokens, prefix = vit.forward_features(pixels), vit.num_prefix_tokens
        if self.keep == "suffix" or (self.keep == "all" and len(self.vits) > 1):
            return tokens[:, prefix:]
        if self.keep == "all":
            return tokens
        return (tokens[:, :prefix] if self.keep == "prefix" and prefix else tokens).mean(1, keepdim=True)
