"""From pictures to pixel values: the backbone's image transform as a Hugging Face image processor."""

import torch
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from prismatic.models.configuration import PrismaticConfig
from vision_backbones import BackboneSpec
from vision_backbones.transforms import image_transform


class PrismaticImageProcessor(BaseImageProcessor):
    """The backbone's image transform as a Hugging Face image processor.

    Args:
        vision_config: `BackboneSpec.to_dict()`.
        image_resize_strategy: "resize-naive", "resize-crop" or "letterbox".
        image_size: side of the input in pixels; None is the backbone's own.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, vision_config=None, image_resize_strategy="resize-naive", image_size=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = vision_config
        self.image_resize_strategy = image_resize_strategy
        self.image_size = image_size

    @property
    def transform(self):
        """Callable from a PIL image to a tensor `[3 * parts, H, W]`."""
        spec = BackboneSpec.from_dict(self.vision_config)
        return image_transform(spec, self.image_resize_strategy, self.image_size)

    def preprocess(self, images, return_tensors="pt", **kwargs) -> BatchFeature:
        """`pixel_values` `[M, 3 * parts, H, W]` of one PIL image or a list of them."""
        images = [images] if isinstance(images, Image.Image) else list(images)
        transform = self.transform
        pixels = torch.stack([transform(image) for image in images])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


AutoImageProcessor.register(PrismaticConfig, slow_image_processor_class=PrismaticImageProcessor)
