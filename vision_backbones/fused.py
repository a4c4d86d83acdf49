"""Several backbones on one patch grid, their features side by side."""

import torch
from torch import nn

from vision_backbones.spec import BackboneSpec
from vision_backbones.transforms import image_transform
from vision_backbones.vit import check_pixels


class FusedBackbone(nn.Module):
    """Features of several backbones, concatenated over channels; made by `create_backbone`.

    Attributes are those of `VisionBackbone`. Prefix tokens are kept where all parts keep equally many; otherwise there
    are patches alone.

    Args:
        spec: Resolved; its parts share one patch grid.
        parts: The backbones of its parts.
        image_resize_strategy: For the transform.
    """

    num_heads = None
    act_layer = None

    def __init__(self, spec: BackboneSpec, parts: list[nn.Module], image_resize_strategy: str = "resize-naive"):
        super().__init__()
        self.spec = spec
        self.transform = image_transform(spec, image_resize_strategy)
        self.parts = nn.ModuleList(parts)
        prefixes = {part.num_prefix_tokens for part in self.parts}

        first = self.parts[0]
        self.image_size = spec.image_size
        self.grid = first.grid
        self.patch_size = first.patch_size
        self.embed_dim = sum(part.embed_dim for part in self.parts)
        self.num_patches = first.num_patches
        self.num_prefix_tokens = first.num_prefix_tokens if len(prefixes) == 1 else 0
        self.num_tokens = self.num_prefix_tokens + self.num_patches

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns features `[B, num_tokens, embed_dim]` of pixels `[B, 3 * parts, H, W]`, three channels a part.

        Raises:
            ValueError: If the pixels have another shape.
        """
        check_pixels(pixel_values, 3 * len(self.parts), self.image_size)
        views = pixel_values.split(3, dim=1)
        features = [part(view)[:, -self.num_tokens :] for part, view in zip(self.parts, views, strict=True)]
        return torch.cat(features, dim=-1)
