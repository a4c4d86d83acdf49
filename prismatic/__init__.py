"""Vision-language models on vision backbones that know where things are.

Importing this makes transformers' Auto classes know the models; `prismatic.load` gives a trained one.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from prismatic.models.configuration import PrismaticConfig
from prismatic.models.load import build, load
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.processing import PrismaticImageProcessor, PrismaticProcessor

AutoConfig.register(PrismaticConfig.model_type, PrismaticConfig)
AutoModelForImageTextToText.register(PrismaticConfig, PrismaticForConditionalGeneration)
AutoImageProcessor.register(PrismaticConfig, slow_image_processor_class=PrismaticImageProcessor)
AutoProcessor.register(PrismaticConfig, PrismaticProcessor)

__all__ = [
    "PrismaticConfig",
    "PrismaticForConditionalGeneration",
    "PrismaticImageProcessor",
    "PrismaticProcessor",
    "build",
    "load",
]
