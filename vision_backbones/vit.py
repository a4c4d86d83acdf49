"""One timm ViT as a backbone: pixels `[B, 3, H, W]` to tokens `[B, N, D]`."""

import functools
from collections.abc import Callable
from inspect import signature
from typing import NamedTuple, TypeVar

import timm
import torch
from timm.layers import HybridEmbed
from torch import nn

from vision_backbones.buffers import RebuiltBuffers
from vision_backbones.soft_cap_others import create_capped
from vision_backbones.spec import BackboneSpec
from vision_backbones.transforms import image_transform
from vision_backbones.weights import find_weights, load_weights

T = TypeVar("T")
# Why a network is not aligned, capped, or continued block by block.
MIXES = (
    "its features mix neighbouring patches from the first layers on, so that there are no tokens to mask (align, mim), "
    "to classify, or for a projector to continue with"
)
NO_VIT = {"NaFlexVit": "it embeds patches of varying grids, which cannot be masked here"}


def build_vit(spec: BackboneSpec, *, pretrained: bool = False) -> nn.Module:
    """Returns the whole timm model of a resolved spec, without classifier; `pretrained` loads timm's own weights."""
    kwargs = {**spec.arch_kwargs, "img_size": spec.image_size, "num_classes": 0, "pretrained": pretrained}
    if torch.get_default_device().type == "meta" and timm.models.is_model_in_modules(spec.arch, ["vision_transformer"]):
        kwargs["weight_init"] = "skip"  # drawing numbers that nobody keeps takes most of the time
    create = functools.partial(timm.create_model, spec.arch)
    try:
        return create_capped(create, spec.arch, spec.soft_cap, **kwargs)
    except TypeError as error:
        if "'img_size'" not in str(error):
            raise
        del kwargs["img_size"]  # it takes images of any size, as ConvNeXt does
        return create_capped(create, spec.arch, spec.soft_cap, **kwargs)


class Layout(NamedTuple):
    """What the ViT of a spec looks like.

    Attributes:
        patch: Side of a patch in pixels.
        grid: Patch rows and columns.
        depth: Number of blocks.
        hybrid: Whether patches come from a convolutional network, so that each has seen others.
    """

    patch: int
    grid: tuple[int, int]
    depth: int
    hybrid: bool = False


def layout(spec: BackboneSpec) -> Layout:
    """Returns the layout of a resolved spec's ViT, which is built on the meta device, once for all specs that share it.

    Raises:
        ValueError: If timm does not build a plain ViT of it.
    """
    found = look_at(_layout, spec)
    if isinstance(found, str):
        raise ValueError(
            f"backbone '{spec.id}': {spec.arch} is a {found}, not a plain ViT: {NO_VIT.get(found, MIXES)}; choose a "
            "ViT, e.g. 'dinov3-vit-b'"
        )
    return found


def is_vit(spec: BackboneSpec) -> bool:
    """Returns whether timm builds a plain ViT of a resolved spec, rather than a network that gives feature maps.

    Raises:
        ValueError: If timm builds nothing of it.
    """
    return isinstance(look_at(_layout, spec), Layout)


def look_at(what: Callable[[BackboneSpec], T], spec: BackboneSpec) -> T:
    """Returns what a cached function sees in the network of a resolved spec; specs that share the network share it.

    Raises:
        ValueError: If timm cannot build or run the network.
    """
    decisive = {name: getattr(spec, name) for name in ("arch", "image_size", "arch_kwargs", "soft_cap")}
    try:
        return what(BackboneSpec("", **decisive))
    except (TypeError, RuntimeError, AssertionError) as error:
        asked = f"it was given image size {spec.image_size}, arch_kwargs {spec.arch_kwargs}, soft_cap {spec.soft_cap}"
        raise ValueError(f"backbone '{spec.id}': timm cannot build {spec.arch} as asked: {error}; {asked}") from error
    except ValueError as error:
        raise ValueError(f"backbone '{spec.id}': {spec.arch} {error}") from None


@functools.cache
def _layout(spec: BackboneSpec) -> Layout | str:
    """The layout, or what kind of network it is if not a plain ViT."""
    with torch.device("meta"):
        vit = build_vit(spec)
    grid = getattr(getattr(vit, "patch_embed", None), "grid_size", None)
    gives_tokens = hasattr(vit, "forward_intermediates") and hasattr(vit, "blocks")
    if not grid or not gives_tokens or "return_prefix_tokens" not in signature(vit.forward_intermediates).parameters:
        return type(vit).__name__
    hybrid = isinstance(vit.patch_embed, HybridEmbed)
    return Layout(vit.patch_embed.feat_ratio(), tuple(grid), len(vit.blocks), hybrid)


def check_vit(spec: BackboneSpec, tail_blocks: int = 0) -> None:
    """Checks, on the meta device, that timm builds a plain ViT of a resolved spec and that its size fits.

    Raises:
        ValueError: If it does not; says what would.
    """
    patch, _, depth, _ = layout(spec)
    check_size(spec, patch)
    if not 0 <= tail_blocks < depth:
        raise ValueError(f"backbone '{spec.id}': tail_blocks must be 0 to {depth - 1}, got {tail_blocks}")
    if skipped_blocks(spec, tail_blocks) >= depth:
        raise ValueError(f"backbone '{spec.id}': features are the second-to-last block's, but depth is {depth}")


def check_size(spec: BackboneSpec, patch: int) -> None:
    """Raises ValueError if the image size of a spec is no multiple of the patch size in pixels; names the nearest."""
    size = spec.image_size
    if size < patch or (size % patch and not spec.allow_border):
        low = max(size // patch * patch, patch)
        raise ValueError(
            f"backbone '{spec.id}': image size {size} is not a multiple of its patch size {patch}; use {low} or "
            f"{low + patch}"
        )


def attention_heads(vit: nn.Module) -> int:
    """Returns the heads of a ViT's first block, whose attention timm may have in parallel layers."""
    return next(module.num_heads for module in vit.blocks[0].modules() if hasattr(module, "num_heads"))


def skipped_blocks(spec: BackboneSpec, tail_blocks: int) -> int:
    """Returns how many blocks at the end the features leave out."""
    return tail_blocks or (0 if spec.reads_last else 1)


def load_vit(spec: BackboneSpec, *, pretrained: bool) -> nn.Module:
    """Returns the ViT of a resolved spec, headless, with random or pretrained weights.

    Raises:
        ValueError: If it is not a plain ViT, or weights are not found or do not fit.
    """
    layout(spec)
    return load_network(spec, pretrained=pretrained)


def load_network(spec: BackboneSpec, *, pretrained: bool) -> nn.Module:
    """Returns the timm model of a resolved spec, a ViT or not, headless, with random or pretrained weights.

    Raises:
        ValueError: If weights are not found or do not fit.
    """
    path = find_weights(spec) if pretrained else None
    from_timm = pretrained and path is None
    try:
        network = build_vit(spec, pretrained=from_timm)
    except Exception as error:
        if not from_timm:
            raise
        # check_spec has built the same model already, so what failed is fetching or fitting the weights; the hub's
        # own errors have no common base class.
        raise ValueError(
            f"backbone '{spec.id}': timm could not load weights for {spec.arch} ({type(error).__name__}: {error}); "
            "on a machine without network put them into the Hugging Face cache (HF_HOME) beforehand and set "
            "HF_HUB_OFFLINE=1, or ask for random weights: pretrained=False, or --pretrained false where a job has it"
        ) from error
    network.prune_intermediate_layers(1, prune_head=True)
    if path is not None:
        load_weights(network, path)
    return network


class VisionBackbone(RebuiltBuffers):
    """Patch features of one ViT; made by `create_backbone`.

    Attributes:
        spec: The resolved spec, enough to rebuild this backbone and its transform.
        transform: Callable from a PIL image to pixels `[3, H, W]`.
        image_size: Side of the input in pixels.
        grid: Patch rows and columns.
        embed_dim: Channels D of a token.
        num_patches: Rows times columns.
        num_prefix_tokens: Prefix tokens in the output, in front of the patches; 0 where they are dropped.
        num_tokens: Tokens in the output.
        patch_size: Side of a patch in pixels.
        vit: The timm model, cut down to what the features need.
    """

    def __init__(
        self, spec: BackboneSpec, *, pretrained: bool, image_resize_strategy: str = "resize-naive", tail_blocks: int = 0
    ):
        super().__init__()
        self.spec = spec
        self.transform = image_transform(spec, image_resize_strategy)
        vit = load_vit(spec, pretrained=pretrained)
        kept = len(vit.blocks) - skipped_blocks(spec, tail_blocks)
        self.tail = nn.ModuleList([nn.ModuleList(list(vit.blocks)[kept:]), vit.norm]) if tail_blocks else None
        self.final_norm = spec.reads_last and not tail_blocks
        vit.prune_intermediate_layers([kept - 1], prune_norm=not self.final_norm, prune_head=True)

        self.vit = vit
        self.image_size = spec.image_size
        self.grid = tuple(vit.patch_embed.grid_size)
        self.embed_dim = vit.embed_dim
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_prefix_tokens = vit.num_prefix_tokens if spec.reads_last or tail_blocks else 0
        self.num_tokens = self.num_prefix_tokens + self.num_patches
        self.patch_size = vit.patch_embed.feat_ratio()

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return attention_heads(self.vit)

    @property
    def act_layer(self) -> type[nn.Module]:
        """Class of the activation in a block's MLP."""
        return type(next((module.act for module in self.vit.blocks[0].modules() if hasattr(module, "act")), nn.GELU()))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns features `[B, num_tokens, embed_dim]` of normalised pixels `[B, 3, H, W]`.

        Raises:
            ValueError: If the pixels have another shape.
        """
        check_pixels(pixel_values, 3, self.image_size)
        keep_prefix = self.num_prefix_tokens > 0
        (tokens,) = self.vit.forward_intermediates(
            pixel_values,
            indices=1,
            norm=self.final_norm,
            output_fmt="NLC",
            intermediates_only=True,
            return_prefix_tokens=keep_prefix,
        )
        return torch.cat(tokens[::-1], dim=1) if keep_prefix else tokens

    def pop_tail(self) -> tuple[nn.ModuleList, nn.Module]:
        """Hands over the `tail_blocks` blocks after the features, and the final norm; once.

        Raises:
            ValueError: If the backbone was made without `tail_blocks`, or its tail is gone.
        """
        if self.tail is None:
            raise ValueError(f"backbone '{self.spec.id}' has no tail: create it with tail_blocks=2, and pop it once")
        blocks, norm = self.tail
        self.tail = None
        return blocks, norm


def check_pixels(pixel_values: torch.Tensor, channels: int, size: int) -> None:
    """Raises ValueError unless the shape is `[B, channels, size, size]`."""
    if pixel_values.ndim != 4 or pixel_values.shape[1:] != (channels, size, size):
        raise ValueError(
            f"pixel values have shape {list(pixel_values.shape)}, expected [B, {channels}, {size}, {size}]: use the "
            "backbone's own transform"
        )
