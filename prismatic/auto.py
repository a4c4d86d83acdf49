"""Makes transformers' Auto classes know our models without importing either before it is needed.

Each of our modules registers what it defines when it is imported. Here it is made sure of that whoever imports one of
transformers' modules of Auto classes imports ours with it.
"""

from vision_backbones.on_import import import_after

OURS = {
    "transformers.models.auto.configuration_auto": ("prismatic.models.configuration", "prismatic.backbone_config"),
    "transformers.models.auto.image_processing_auto": ("prismatic.models.image_processing",),
    "transformers.models.auto.processing_auto": ("prismatic.models.processing",),
    "transformers.models.auto.modeling_auto": ("prismatic.models.modeling", "prismatic.auto_backbone"),
    "prismatic.models.modeling": ("prismatic.models.load",),  # which puts a model together that a folder names in parts
}


def register() -> None:
    """Registers now what is asked for already, and the rest when it is."""
    for theirs, ours in OURS.items():
        import_after(theirs, *ours)
