"""The named models on the meta device."""

import functools

import torch
from transformers import AutoModelForCausalLM

from prismatic import PrismaticForConditionalGeneration
from prismatic.models.load import meta_config
from recipes.settings import named_models

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
