"""The named models and their vision backbones on the meta device."""

import functools
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM

from prismatic import PrismaticForConditionalGeneration
from prismatic.models.load import meta_config
from recipes.settings import named_models
from vision_backbones import create_backbone

MODELS = named_models()
PARTS = ("vision_backbone", "llm", "projector", "image_resize_strategy")
BUILDS = sorted({tuple(m[p] for p in PARTS[:3]) for m in MODELS.values()})


@functools.cache
def llm_on_meta(name):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(meta_config("miniature", name, "gelu-mlp").text_config)


def on_meta(vision_backbone, llm, projector):
    """The model that these parts make; what one LLM is, models share."""
    with torch.device("meta"):
        return PrismaticForConditionalGeneration(meta_config(vision_backbone, llm, projector), llm=llm_on_meta(llm))


@functools.cache
def backbone_on_meta(id):
    with torch.device("meta"):
        return create_backbone(id, pretrained=False)


@contextmanager
def shallow(vits):
    """The last two blocks of each ViT alone, since all are alike, and 32 of them take a second."""
    blocks = [vit.blocks for vit in vits]
    for vit in vits:
        vit.blocks = vit.blocks[-2:]
    yield
    for vit, whole in zip(vits, blocks, strict=True):
        vit.blocks = whole
