"""Looking at patch features: which patches are alike, their main directions as colours, the pixels they stand for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as F

from vision_backbones.factory import create_backbone
from vision_backbones.spec import BackboneSpec

AXES = 3  # red, green, blue
TAILS = 0.02  # share of the values, at either end, that the ends of the colours stand for


def similarity(features: torch.Tensor, patch: int) -> torch.Tensor:
    """Cosine similarity `[N]`, float32, of one patch to every patch of features `[N, D]`; 0 where a feature is zero.

    Raises:
        ValueError: There is no patch of that number, or the features are of another shape.
    """
    if features.ndim != 2:
        raise ValueError(f"features have shape {list(features.shape)}, expected [N, D]: those of one image's patches")
    if not 0 <= patch < len(features):
        raise ValueError(f"patch {patch} is not one of the {len(features)} patches: give 0 to {len(features) - 1}")
    features = features.float()
    length = features.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, features / length, 0)
    return (unit @ unit[patch]).clamp(-1, 1)


def colours(features: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Colours `[M, N, 3]`, uint8, of the patches of M images: features `[M, N, D]` along their three principal axes.

    Axes are those of all patches together, so that colours of different images compare; those of different backbones
    do not. A list of `[N, D]` is stacked first.
    """
    features = (features if isinstance(features, torch.Tensor) else torch.stack(list(features))).float()
    flat = features.flatten(0, 1) - features.mean((0, 1))
    axes = torch.linalg.svd(flat, full_matrices=False).Vh[:AXES]
    values = nn.functional.pad(flat @ axes.T, (0, AXES - len(axes)))
    low, high = values.quantile(TAILS, dim=0), values.quantile(1 - TAILS, dim=0)
    shares = torch.where(high > low, (values - low) / (high - low), 0)
    return shares.clamp(0, 1).mul(255).byte().view(*features.shape[:2], AXES)


def seen_picture(pixels: torch.Tensor, spec: BackboneSpec) -> Image.Image:
    """The RGB picture that normalised pixels `[C, H, W]` are; of a fused backbone, those of its first part.

    Args:
        pixels: From the transform of the backbone.
        spec: Resolved, of the backbone.
    """
    first = spec.parts[0] if spec.parts else spec
    mean, std = (torch.tensor(values)[:, None, None] for values in (first.mean, first.std))
    return F.to_pil_image((pixels[:3].float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte())


class View(NamedTuple):
    """What a backbone sees and says of one image.

    Attributes:
        features: Float32 `[N, D]` of the patches, row by row, on CPU.
        picture: RGB, the pixels that the patches cover, `grid` times `patch` large.
    """

    features: torch.Tensor
    picture: Image.Image


class ViewedBackbone:
    """A backbone together with what it sees of images.

    Attributes:
        name: What it was asked for by.
        backbone: The module, in evaluation mode.
        grid: Patch rows and columns.
        patch: Side of a patch in pixels of a view's picture.
    """

    def __init__(self, backbone: nn.Module, name: str):
        self.name, self.backbone = name, backbone.requires_grad_(False).eval()
        self.grid, self.patch = backbone.grid, backbone.patch_size

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> View:
        """Returns features and picture of an image of any size and mode."""
        pixels, weights = self.backbone.transform(image), next(self.backbone.parameters())
        tokens = self.backbone(pixels[None].to(weights))[0, self.backbone.num_prefix_tokens :]
        return View(tokens.float().cpu(), self._covered(pixels))

    def see(self, image: Image.Image) -> Image.Image:
        """Returns the picture alone."""
        return self._covered(self.backbone.transform(image))

    def _covered(self, pixels: torch.Tensor) -> Image.Image:
        """Without pixels beyond the last whole patch."""
        height, width = (length * self.patch for length in self.grid)
        return seen_picture(pixels, self.backbone.spec).crop((0, 0, width, height))


def view_backbone(name: str) -> ViewedBackbone:
    """The backbone of a name, to look at: a registered id, `timm:<timm id>`, or a run of recipes/align.py.

    Raises:
        ValueError: As `create_backbone`.
    """
    return ViewedBackbone(create_backbone(name), name)
