"""The configuration of a vision backbone under the heads of transformers (see `prismatic.auto_backbone`)."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from vision_backbones import BackboneSpec


class PrismaticBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """Which backbone it is, and which blocks' outputs are its feature maps.

    Args:
        vision_config: `BackboneSpec.to_dict()` of a resolved spec.
        num_hidden_layers: blocks; read off the ViT when None. Their stages are `stage1`, `stage2`, ...
        apply_layernorm: the backbone's final norm is applied to every map; None where the backbone is aligned.
        out_features: names of stages. Without these and `out_indices`, the one that the backbone's features come from.
        out_indices: their places, from 0: block 1 is `stage1` and has index 0.

    Raises:
        ValueError: it is no ViT, fused ViTs have different numbers of blocks, or a stage is unknown.
    """

    model_type = "prismatic_backbone"

    vision_config: dict[str, Any] | None = None
    num_hidden_layers: int | None = None
    apply_layernorm: bool | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        asked = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        ours = 1
        if self.vision_config is not None:
            spec = BackboneSpec.from_dict(self.vision_config)
            if self.num_hidden_layers is None:
                self.num_hidden_layers = _depth(spec)
            aligned = all(part.aligned for part in spec.parts or (spec,))
            ours = self.num_hidden_layers - (0 if aligned else 1)
        self.stage_names = [f"stage{number}" for number in range(1, (self.num_hidden_layers or 1) + 1)]
        if not any(asked.values()):
            asked["out_features"] = [f"stage{ours}"]
        self.set_output_features_output_indices(**asked)
        super().__post_init__(**kwargs)


def _depth(spec: BackboneSpec) -> int:
    from vision_backbones.vit import is_vit, layout  # imports timm

    for part in spec.parts or (spec,):
        if not is_vit(part):
            raise ValueError(
                f"backbone '{part.id}': {part.arch} is no plain ViT, whose blocks are stages here; use transformers' "
                "TimmBackbone for it"
            )
    depths = {part.id: layout(part).depth for part in spec.parts or (spec,)}
    if len({*depths.values()}) > 1:
        said = ", ".join(f"{id} has {depth}" for id, depth in depths.items())
        raise ValueError(f"backbone '{spec.id}': its ViTs have no stages in common, {said}: take one of them")
    return next(iter(depths.values()))


AutoConfig.register(PrismaticBackboneConfig.model_type, PrismaticBackboneConfig)
