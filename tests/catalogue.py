"""The named models and their vision backbones on the meta device."""

import functools
import re
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from prismatic import PrismaticForConditionalGeneration
from prismatic.models.build import meta_config
from recipes.config.finetune import named_models
from vision_backbones import create_backbone, get_spec, list_backbones

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


def each_backbone():
    """Every backbone of the catalog, for tests of each; more than one of a family are slow tests."""
    families, parameters = set(), []
    for id in list_backbones():
        family = re.match("[a-z]+", id)[0], "aligned" in id, get_spec(id).arch.partition("_")[0]
        parameters.append(pytest.param(id, marks=[pytest.mark.slow] if family in families else []))
        families.add(family)
    return parameters


@contextmanager
def shallow(vits):
    """The last two blocks of each ViT alone, since all are alike, and 32 of them take a second."""
    blocks = [vit.blocks for vit in vits]
    for vit in vits:
        vit.blocks = vit.blocks[-2:]
    yield
    for vit, whole in zip(vits, blocks, strict=True):
        vit.blocks = whole
