"""timm's entry point for ViTs with soft-capped attention; `import vision_backbones` has timm know it.

A folder or repository that names it as its architecture is refused by a timm without this package: there is no
architecture of that name. Were it to name the plain ViT, the cap would be lost in silence.
"""

from timm.models import is_model, list_models, model_entrypoint, register_model
from torch import nn

from vision_backbones.names import suggest

NAME = "soft_capped_vit"


@register_model
def soft_capped_vit(pretrained: bool = False, *, vit: str, soft_cap: float, **kwargs) -> nn.Module:
    """Returns timm's ViT of an architecture, its attention logits bounded to `(-soft_cap, soft_cap)`.

    Args:
        pretrained: Load the weights that `pretrained_cfg` names.
        vit: Architecture of timm, without a tag.
        soft_cap: See `SoftCapAttention`.
        kwargs: What the entry point of that architecture takes.

    Raises:
        ValueError: If there is no such architecture, or its attention is not timm's plain one.
    """
    # timm is imported by the module of the attention, and imports this one.
    from vision_backbones.soft_cap_others import create_capped

    if not is_model(vit):
        raise ValueError(f"{NAME}: timm has no architecture {vit!r}: {suggest(vit, list_models(), otherwise='')}")
    try:
        model = create_capped(model_entrypoint(vit), vit, soft_cap, pretrained=pretrained, **kwargs)
    except TypeError as error:
        raise ValueError(f"{NAME}: timm cannot build {vit} with soft-capped attention: {error}") from error
    except ValueError as error:
        raise ValueError(f"{NAME}: {vit} {error}") from error
    model.pretrained_cfg["architecture"] = NAME  # under which timm saves it again
    return model
