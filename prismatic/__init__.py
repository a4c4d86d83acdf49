"""Vision-language models on vision backbones that know where things are.

Importing this makes transformers' Auto classes know the models; `prismatic.load` returns a trained one. What is heavy
is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING

from prismatic import auto

if TYPE_CHECKING:  # what `_HOMES` gives when it is asked for
    from prismatic.auto_backbone import PrismaticBackbone as PrismaticBackbone
    from prismatic.backbone_config import PrismaticBackboneConfig as PrismaticBackboneConfig
    from prismatic.models.build import build as build
    from prismatic.models.configuration import PrismaticConfig as PrismaticConfig
    from prismatic.models.image_processing import PrismaticImageProcessor as PrismaticImageProcessor
    from prismatic.models.load import load as load
    from prismatic.models.modeling import PrismaticForConditionalGeneration as PrismaticForConditionalGeneration
    from prismatic.models.processing import PrismaticProcessor as PrismaticProcessor

_HOMES = {
    "PrismaticBackbone": "prismatic.auto_backbone",
    "PrismaticBackboneConfig": "prismatic.backbone_config",
    "PrismaticConfig": "prismatic.models.configuration",
    "PrismaticForConditionalGeneration": "prismatic.models.modeling",
    "PrismaticImageProcessor": "prismatic.models.image_processing",
    "PrismaticProcessor": "prismatic.models.processing",
    "build": "prismatic.models.build",
    "load": "prismatic.models.load",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'prismatic' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


auto.register()
