"""Makes the backbone that a name or a spec stands for. Imports torch and timm when one is made, not before."""

from typing import TYPE_CHECKING

from vision_backbones.registry import resolve_spec
from vision_backbones.spec import BackboneSpec
from vision_backbones.weights import find_weights

if TYPE_CHECKING:
    from vision_backbones.feature_maps import FeatureMapBackbone
    from vision_backbones.fused import FusedBackbone
    from vision_backbones.vit import VisionBackbone


def check_spec(id_or_spec: str | BackboneSpec, *, image_size: int | None = None, tail_blocks: int = 0) -> BackboneSpec:
    """Returns the resolved spec if a backbone can be made of it, without reading or allocating any weights.

    Raises:
        ValueError: As `create_backbone`, except for weights.
    """
    from vision_backbones.feature_maps import check_feature_map, patch_grid
    from vision_backbones.vit import check_vit, is_vit

    spec = resolve_spec(id_or_spec, image_size=image_size)
    if spec.parts and tail_blocks:
        raise ValueError(
            f"'{spec.id}' is fused: tail_blocks={tail_blocks} needs a single ViT, e.g. '{spec.parts[0].id}'"
        )
    for part in spec.parts or (spec,):
        (check_vit if is_vit(part) else check_feature_map)(part, tail_blocks)
    grids = [(part.id, patch_grid(part)[0]) for part in spec.parts]
    if len({grid for _, grid in grids}) > 1:
        shown = ", ".join(f"{id} {grid[0]}x{grid[1]}" for id, grid in grids)
        raise ValueError(f"backbone '{spec.id}': parts must share one patch grid, got {shown} at {spec.image_size} px")
    return spec


def create_backbone(
    id_or_spec: str | BackboneSpec,
    *,
    pretrained: bool = True,
    image_resize_strategy: str = "resize-naive",
    image_size: int | None = None,
    tail_blocks: int = 0,
) -> "VisionBackbone | FeatureMapBackbone | FusedBackbone":
    """Returns a vision backbone: a module from pixels `[B, 3 * parts, H, W]` to features `[B, num_tokens, embed_dim]`.

    Args:
        id_or_spec: A registered id, `timm:<timm id>`, a run folder (see `get_spec`), several of these joined by `+`,
            or a spec.
        pretrained: Load weights; otherwise they are random.
        image_resize_strategy: `resize-naive`, `resize-crop` or `letterbox`, for `backbone.transform`.
        image_size: Side of the input in pixels, instead of the spec's; position embeddings are interpolated.
        tail_blocks: End this many blocks before the last; see `VisionBackbone.pop_tail`.

    Raises:
        ValueError: On unknown names, an image size that is not a multiple of the patch, parts of different patch
            grids, weights that are not found or do not fit.
    """
    from vision_backbones.fused import FusedBackbone

    spec = check_spec(id_or_spec, image_size=image_size, tail_blocks=tail_blocks)
    if not spec.parts:
        options = {"image_resize_strategy": image_resize_strategy, "tail_blocks": tail_blocks}
        return _create_single(spec, pretrained=pretrained, **options)
    for part in spec.parts if pretrained else ():  # a missing file shows before the first part is loaded
        find_weights(part)
    parts = [_create_single(part, pretrained=pretrained) for part in spec.parts]
    return FusedBackbone(spec, parts, image_resize_strategy)


def _create_single(spec: BackboneSpec, **options) -> "VisionBackbone | FeatureMapBackbone":
    from vision_backbones.feature_maps import FeatureMapBackbone
    from vision_backbones.vit import VisionBackbone, is_vit

    return (VisionBackbone if is_vit(spec) else FeatureMapBackbone)(spec, **options)
