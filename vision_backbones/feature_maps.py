"""Networks of timm that give a feature map rather than tokens: ConvNeXt, Swin, Hiera, SAM's ViT, NaFlex, ..."""

import functools
import math
from typing import NamedTuple

import torch
from timm.models.naflexvit import NaFlexVit
from torch import nn

from vision_backbones.buffers import RebuiltBuffers
from vision_backbones.spec import BackboneSpec
from vision_backbones.transforms import image_transform
from vision_backbones.vit import build_vit, check_pixels, check_size, is_vit, layout, load_network, look_at


class MapLayout(NamedTuple):
    """What the feature map of a spec looks like.

    Attributes:
        stride: Side in pixels of what one place of the map stands for.
        grid: Rows and columns.
        width: Channels.
    """

    stride: int
    grid: tuple[int, int]
    width: int


def map_layout(spec: BackboneSpec) -> MapLayout:
    """Returns the layout of a resolved spec's feature map; the network runs once, on the meta device.

    Raises:
        ValueError: If timm does not build the network, or it gives no such map.
    """
    found = look_at(_map_layout, spec)
    if isinstance(found, str):
        raise ValueError(
            f"backbone '{spec.id}': {spec.arch} {found}; choose a network with feature maps, e.g. 'convnext-dinov3-b'"
        )
    return found


@functools.cache
def _map_layout(spec: BackboneSpec) -> MapLayout | str:
    """The layout, or why there is none."""
    built = _on_meta(spec)
    if isinstance(built, str):
        return built
    stride, network = built
    with torch.device("meta"):
        features = last_map(network, torch.empty(1, 3, spec.image_size, spec.image_size))
    if features.ndim != 4:
        return f"is a {type(network).__name__}, whose last stage gives {list(features.shape)}, expected [B, D, H, W]"
    return MapLayout(stride, tuple(features.shape[2:]), features.shape[1])


@functools.cache
def _on_meta(spec: BackboneSpec) -> tuple[int, nn.Module] | str:
    """Total stride and network, or why there is none."""
    with torch.device("meta"):
        network = build_vit(spec).eval()
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
        return f"is a {type(network).__name__}, of which timm gives no feature maps"
    stride = network.feature_info[-1]["reduction"]
    cut(network)
    return stride, network


def check_feature_map(spec: BackboneSpec, tail_blocks: int = 0) -> None:
    """Checks, on the meta device, that a resolved spec's network gives a feature map and that its size fits.

    Raises:
        ValueError: If it does not, or the spec asks for what only ViTs have: alignment,
            features of another block, tail blocks.
    """
    if spec.aligned or spec.features or tail_blocks:
        layout(spec)  # says why not
    built = look_at(_on_meta, spec)
    if not isinstance(built, str):
        check_size(spec, built[0])  # before the network runs, which fails at other sizes
    map_layout(spec)


def patch_grid(spec: BackboneSpec) -> tuple[tuple[int, int], int]:
    """Returns rows and columns of patches, and the side of a patch in pixels, of a resolved spec of either kind."""
    found = layout(spec) if is_vit(spec) else map_layout(spec)
    return found.grid, found[0]


def last_index(network: nn.Module) -> int:
    """Returns which of the whole network's intermediates the features are: the last, or a NaFlex ViT's last but one."""
    return len(network.feature_info) - (2 if isinstance(network, NaFlexVit) else 1)


def cut(network: nn.Module) -> None:
    """Drops what comes after the features: the final norm, the head, and of a NaFlex ViT the last block."""
    network.prune_intermediate_layers([last_index(network)], prune_norm=True, prune_head=True)


def last_map(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the map `[B, D, H, W]` of a network's last stage, without final norm."""
    return network.forward_intermediates(pixels, indices=1, intermediates_only=True)[-1]


class FeatureMapBackbone(RebuiltBuffers):
    """The feature map of a network's last stage as patch features; made by `create_backbone`.

    Features are those before the final norm (and SAM's neck), without prefix tokens. NaFlex ViTs, being ViTs, give
    their second-to-last block's; their images are squares here, as everyone's.

    Attributes:
        spec: As of `VisionBackbone`, like all that follow but `network`.
        transform: Callable from a PIL image to pixels `[3, H, W]`.
        image_size: Side of the input in pixels.
        grid: Rows and columns of the map.
        embed_dim: Channels D of the map.
        num_patches: Rows times columns.
        num_prefix_tokens: 0.
        num_tokens: As many as patches.
        patch_size: The network's total stride in pixels.
        num_heads: Of a transformer that continues it, about one for 64 channels.
        act_layer: None.
        network: The timm model, without what comes after the features.
    """

    num_prefix_tokens = 0
    act_layer = None

    def __init__(
        self, spec: BackboneSpec, *, pretrained: bool, image_resize_strategy: str = "resize-naive", tail_blocks: int = 0
    ):
        super().__init__()
        check_feature_map(spec, tail_blocks)
        self.spec = spec
        self.transform = image_transform(spec, image_resize_strategy)
        self.network = load_network(spec, pretrained=pretrained)
        cut(self.network)
        self.image_size = spec.image_size
        self.patch_size, self.grid, self.embed_dim = map_layout(spec)
        self.num_patches = self.num_tokens = self.grid[0] * self.grid[1]
        self.num_heads = math.gcd(self.embed_dim, max(1, self.embed_dim // 64))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns features `[B, num_tokens, embed_dim]`, row by row, of normalised pixels `[B, 3, H, W]`.

        Raises:
            ValueError: If the pixels have another shape.
        """
        check_pixels(pixel_values, 3, self.image_size)
        return last_map(self.network, pixel_values).flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> "FeatureMapBackbone":
        """Stays in evaluation mode where it is frozen: batch norm would drift, Swin's stochastic depth drop layers."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def pop_tail(self) -> tuple[nn.ModuleList, nn.Module]:
        """Raises ValueError: there are no blocks after the features that a projector could continue with."""
        raise ValueError(f"backbone '{self.spec.id}' has no tail: it gives feature maps; choose a ViT")
