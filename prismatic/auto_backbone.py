"""Vision backbones for the segmentation and detection heads of transformers: feature maps `[B, C, H, W]` of blocks."""

import dataclasses

import torch
from torch import nn
from transformers import AutoBackbone, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import can_return_tuple

from prismatic.backbone_config import PrismaticBackboneConfig
from vision_backbones import BackboneSpec, check_spec
from vision_backbones.buffers import RebuiltBuffers, rebuild_buffers
from vision_backbones.vit import layout, load_vit


class PrismaticBackbone(RebuiltBuffers, BackboneMixin, PreTrainedModel):
    """One or several ViTs of `vision_backbones`, soft cap included, as a backbone of transformers.

    `PrismaticBackbone.of(id)` makes one with weights. Images may have any size that holds a patch, where timm's ViT
    allows it (BEiT's does not): position embeddings are interpolated, pixels beyond the last whole patch are not seen.

    Args:
        config: what to build.
        pretrained: load the spec's weights; otherwise they are random.
    """

    config_class = PrismaticBackboneConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    supports_gradient_checkpointing = False

    def __init__(self, config: PrismaticBackboneConfig, pretrained: bool = False):
        super().__init__(config)
        spec = check_spec(BackboneSpec.from_dict(config.vision_config))
        parts = spec.parts or (spec,)
        self.norms = [part.reads_last if config.apply_layernorm is None else config.apply_layernorm for part in parts]
        self.patches = [layout(part).patch for part in parts]
        self.vits = nn.ModuleList(load_vit(_of_any_size(part), pretrained=pretrained) for part in parts)
        self.num_features = [sum(vit.embed_dim for vit in self.vits)] * config.num_hidden_layers
        self.post_init()

    @classmethod
    def of(
        cls,
        id_or_spec: str | BackboneSpec,
        *,
        pretrained: bool = True,
        image_size: int | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        apply_layernorm: bool | None = None,
    ) -> "PrismaticBackbone":
        """A backbone by name, with its weights, in evaluation mode.

        Args:
            id_or_spec: registered id, `timm:<timm id>`, run folder of recipes/align.py, or spec.
            pretrained: load weights; otherwise they are random.
            image_size: side of the images in pixels that position embeddings are stored for, instead of the spec's.
            out_features: see `PrismaticBackboneConfig`.
            out_indices: likewise.
            apply_layernorm: likewise.

        Raises:
            ValueError: as `create_backbone`, and as `PrismaticBackboneConfig`.
        """
        spec = check_spec(id_or_spec, image_size=image_size)
        chosen = {"out_features": out_features, "out_indices": out_indices, "apply_layernorm": apply_layernorm}
        return cls(PrismaticBackboneConfig(vision_config=spec.to_dict(), **chosen), pretrained=pretrained).eval()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in any Hugging Face model, except that a missing, unexpected or mismatched key raises ValueError."""
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(*args, **options)
        problems = {kind: sorted(map(str, info.get(f"{kind}_keys") or [])) for kind in _PROBLEMS}
        if listed := "; ".join(f"{kind}: {', '.join(v[:5])} ({len(v)})" for kind, v in problems.items() if v):
            raise ValueError(f"{args[0] if args else 'the checkpoint'} does not hold this backbone: {listed}")
        return (model, info) if output_loading_info else model

    def _init_weights(self, module):
        # timm initialises its layers on construction; only buffers that no checkpoint holds are to be rebuilt.
        rebuild_buffers(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """Feature maps of the chosen stages, each `[B, C, H / patch, W / patch]`, of pixels `[B, 3 * parts, H, W]`.

        Args:
            pixel_values: normalised; several ViTs have three channels each, and their maps are concatenated.
            output_hidden_states: give the maps of all stages as well.
            output_attentions: cannot be given.
            kwargs: what transformers passes along.

        Raises:
            ValueError: the pixels have another number of channels or no whole patch, or attentions are asked for.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("timm's ViTs give no attentions: leave out output_attentions")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        chosen = [self.stage_names.index(name) for name in self.out_features]
        indices = list(range(len(self.stage_names))) if output_hidden_states else chosen
        channels = 3 * len(self.vits)
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel values have shape {list(pixel_values.shape)}, expected [B, {channels}, H, W]")
        views = pixel_values.to(self.dtype).split(3, dim=1)
        found = [self._maps(number, view, indices) for number, view in enumerate(views)]
        maps = dict(zip(indices, (torch.cat(of_parts, dim=1) for of_parts in zip(*found, strict=True)), strict=True))
        return BackboneOutput(
            feature_maps=tuple(maps[index] for index in chosen),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )

    def _maps(self, number: int, pixels: torch.Tensor, indices: list[int]) -> list[torch.Tensor]:
        """Maps of one ViT."""
        vit, patch, size = self.vits[number], self.patches[number], tuple(pixels.shape[-2:])
        height, width = (side // patch * patch for side in size)
        if not height or not width:
            raise ValueError(f"images are {size[0]} x {size[1]} pixels, expected at least one patch of {patch}")
        if getattr(vit, "dynamic_img_size", False):
            pixels = pixels[..., :height, :width]  # as the patches of a ViT of fixed size: the rest has no patch
        elif size != tuple(vit.patch_embed.img_size):
            raise ValueError(f"images are {size[0]} x {size[1]} pixels, but {type(vit).__name__} takes one size only")
        return vit.forward_intermediates(
            pixels, indices=indices, norm=self.norms[number], stop_early=True, intermediates_only=True
        )


_PROBLEMS = ("missing", "unexpected", "mismatched")


def _of_any_size(spec: BackboneSpec) -> BackboneSpec:
    """The spec with a ViT that takes images of any size, where there is one."""
    free = dataclasses.replace(spec, arch_kwargs=spec.arch_kwargs | {"dynamic_img_size": True})
    try:
        layout(free)
    except ValueError:
        return spec
    return free


AutoBackbone.register(PrismaticBackboneConfig, PrismaticBackbone)
