"""Vision-language models on vision backbones that know where things are.

Importing this makes transformers' Auto classes know the models; `prismatic.load` returns a trained one. What is heavy
is imported when it is first asked for.
"""

import importlib

from prismatic import auto

_HOMES = {
    "PrismaticBackbone": "prismatic.auto_backbone",
    "PrismaticBackboneConfig": "prismatic.backbone_config",
    "PrismaticConfig": "prismatic.models.configuration",
    "PrismaticForConditionalGeneration": "prismatic.models.modeling",
    "PrismaticImageProcessor": "prismatic.models.image_processing",
    "PrismaticProcessor": "prismatic.models.processing",
    "build": "prismatic.models.load",
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
