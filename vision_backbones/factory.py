"""Makes the backbone that a name or a spec stands for. Imports torch and timm when one is made, not before."""

from typing import TYPE_CHECKING

from vision_backbones.registry import resolve_spec
from vision_backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from vision_backbones.fused import FusedBackbone
    from vision_backbones.vit import VisionBackbone


def check_spec(id_or_spec: str | BackboneSpec, *, image_size: int | None = None, tail_blocks: int = 0) -> BackboneSpec:
    """Returns the resolved spec if a backbone can be made of it, without reading or allocating any weights.

    Raises:
        ValueError: As `create_backbone`, except for weights.
    """
    from vision_backbones.vit import check_vit

    spec = resolve_spec(id_or_spec, image_size=image_size)
    if spec.parts and tail_blocks:
        raise ValueError(
            f"'{spec.id}' is fused: tail_blocks={tail_blocks} needs a single ViT, e.g. '{spec.parts[0].id}'"
        )
    for part in spec.parts or (spec,):
        check_vit(part, tail_blocks)
    return spec


def create_backbone(
    id_or_spec: str | BackboneSpec,
    *,
    pretrained: bool = True,
    image_resize_strategy: str = "resize-naive",
    image_size: int | None = None,
    tail_blocks: int = 0,
) -> "VisionBackbone | FusedBackbone":
    """Returns a vision backbone: a module from pixels `[B, 3 * parts, H, W]` to features `[B, num_tokens, embed_dim]`.

    Args:
        id_or_spec: A registered id, `timm:<timm id>`, a run folder (see `get_spec`), or a spec.
        pretrained: Load weights; otherwise they are random.
        image_resize_strategy: `resize-naive`, `resize-crop` or `letterbox`, for `backbone.transform`.
        image_size: Side of the input in pixels, instead of the spec's; position embeddings are interpolated.
        tail_blocks: End this many blocks before the last; see `VisionBackbone.pop_tail`.

    Raises:
        ValueError: On unknown names, an image size that is not a multiple of the patch, weights that are not
            found or do not fit.
    """
    from vision_backbones.fused import FusedBackbone
    from vision_backbones.vit import VisionBackbone

    spec = check_spec(id_or_spec, image_size=image_size, tail_blocks=tail_blocks)
    if spec.parts:
        return FusedBackbone(spec, pretrained=pretrained, image_resize_strategy=image_resize_strategy)
    return VisionBackbone(
        spec, pretrained=pretrained, image_resize_strategy=image_resize_strategy, tail_blocks=tail_blocks
    )
