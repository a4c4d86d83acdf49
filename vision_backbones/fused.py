"""Several ViTs on one patch grid, their features side by side."""

import torch
from torch import nn

from vision_backbones.spec import BackboneSpec
from vision_backbones.transforms import image_transform
from vision_backbones.vit import VisionBackbone, check_pixels
from vision_backbones.weights import find_weights


class FusedBackbone(nn.Module):
    """Features of several ViTs concatenated over channels; made by `create_backbone`, attributes as `VisionBackbone`.

    Raises:
        ValueError: If the parts have different patch grids, or some keep prefix tokens that others do not have.
    """

    def __init__(self, spec: BackboneSpec, *, pretrained: bool, image_resize_strategy: str = "resize-naive"):
        super().__init__()
        self.spec = spec
        self.transform = image_transform(spec, image_resize_strategy)
        if pretrained:
            for part in spec.parts:  # a missing file shows before the first part is loaded
                find_weights(part)
        self.parts = nn.ModuleList(VisionBackbone(part, pretrained=pretrained) for part in spec.parts)
        layouts = {(part.grid, part.num_prefix_tokens) for part in self.parts}
        if len(layouts) > 1:
            shown = ", ".join(f"{p.spec.id} {p.grid[0]}x{p.grid[1]} + {p.num_prefix_tokens} prefix" for p in self.parts)
            raise ValueError(f"backbone '{spec.id}': parts must share one token grid, got {shown}")

        first = self.parts[0]
        self.image_size = spec.image_size
        self.grid = first.grid
        self.embed_dim = sum(part.embed_dim for part in self.parts)
        self.num_patches = first.num_patches
        self.num_prefix_tokens = first.num_prefix_tokens
        self.num_tokens = first.num_tokens

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns features `[B, num_tokens, embed_dim]` of pixels `[B, 3 * parts, H, W]`, three channels a part.

        Raises:
            ValueError: If the pixels have another shape.
        """
        check_pixels(pixel_values, 3 * len(self.parts), self.image_size)
        views = pixel_values.split(3, dim=1)
        return torch.cat([part(view) for part, view in zip(self.parts, views, strict=True)], dim=-1)
