"""timm ViTs as the golden cases describe them."""

import ast

from torch import nn

from vision_backbones import BackboneSpec
from vision_backbones.vit import build_vit


def golden_vit(ctor: dict, *, capped: bool) -> nn.Module:
    """The whole ViT of a case's constructor arguments; some cases hold them as strings."""
    ctor = dict(ctor)
    quick = "QuickGELU" in ctor.pop("act_layer", "")
    eps = float(ctor.pop("norm_layer").rpartition("eps=")[2].rstrip(")"))
    ctor = {k: ast.literal_eval(v) if isinstance(v, str) and k != "global_pool" else v for k, v in ctor.items()}
    # Activation and norm are stored as reprs; the CLIP architecture has the same ones by name.
    arch, own = ("vit_base_patch16_clip_quickgelu_224", 1e-5) if quick else ("vit_base_patch16_224", 1e-6)
    assert eps == own
    spec = BackboneSpec("golden", arch=arch, image_size=ctor.pop("img_size"), arch_kwargs=ctor)
    return build_vit(BackboneSpec.from_dict({**spec.to_dict(), "soft_cap": 30.0 if capped else None}))


def strip(tensors: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
