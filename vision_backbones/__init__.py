"""A registry of vision backbones that give patch features; usable alone."""

from vision_backbones import catalog as catalog
from vision_backbones.factory import check_spec, create_backbone
from vision_backbones.on_import import import_after
from vision_backbones.registry import get_spec, import_plugins, list_backbones, register, resolve_spec
from vision_backbones.spec import BackboneSpec

__all__ = [
    "BackboneSpec",
    "check_spec",
    "create_backbone",
    "get_spec",
    "import_plugins",
    "list_backbones",
    "register",
    "resolve_spec",
]

import_after("timm", "vision_backbones.soft_capped_vit")  # timm then knows the name
