"""The vision backbone of any name or folder, to look at: of finetuned VLMs too."""

from pathlib import Path

import torch

from prismatic.models.load import load
from vision_backbones import get_spec
from vision_backbones.patch_views import ViewedBackbone, view_backbone


def view(name: str) -> ViewedBackbone:
    """The backbone of a name: what `vision_backbones.patch_views.view_backbone` takes, or a folder of a trained VLM.

    A VLM is read whole, in bfloat16, and its backbone alone is kept: with its own weights, resizing and last block.

    Raises:
        ValueError: The name is unknown, or the folder holds neither.
    """
    try:
        get_spec(name)
    except ValueError as no_backbone:
        if not Path(name).expanduser().is_dir():
            raise
        try:
            model, _ = load(Path(name).expanduser(), dtype=torch.bfloat16)
        except ValueError as no_model:
            raise ValueError(f"{name} is neither a backbone ({no_backbone}) nor a VLM ({no_model})") from no_model
        return ViewedBackbone(model.vision_backbone.float(), name)
    return view_backbone(name)
