"""From images to pixel values: the backbone's image transform as a Hugging Face image processor."""

import base64
import binascii
import io
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from prismatic.models.configuration import PrismaticConfig
from vision_backbones import BackboneSpec
from vision_backbones.safe_images import open_image, to_rgb
from vision_backbones.transforms import image_transform

MOST_BYTES = 64 << 20  # of an image that is fetched


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

    @property
    def size(self) -> dict[str, int]:
        """Height and width in pixels of what the backbone gets, whatever the size of an image."""
        side = self.image_size or BackboneSpec.from_dict(self.vision_config).image_size
        return {"height": side, "width": side}

    def preprocess(self, images, return_tensors="pt", **kwargs) -> BatchFeature:
        """`pixel_values` `[M, 3 * parts, H, W]` of an image or a list of them, each as `read_image` takes it."""
        transform = self.transform
        pixels = torch.stack([transform(read_image(image)) for image in flat_images(images)])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def flat_images(images) -> list[Any]:
    """A list of images, of one image, a list, a list of lists, a batch `[M, ...]` as array or tensor, or None."""
    if images is None:
        return []
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4):
        return [one for image in images for one in flat_images(image)]
    return [images]


def read_image(image: Any) -> Image.Image:
    """A PIL image.

    Args:
        image: a PIL image, an array or tensor (`[H, W]`, `[H, W, C]` or `[C, H, W]`, 0 to 255 or floats of 0 to 1), a
            path, an http(s) URL, a data URL, base64, encoded bytes, or `{"bytes": ..., "path": ...}` as `datasets` have
            it.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray | torch.Tensor):
        return _from_array(image)
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        file, shown = _file_of(image), image[:60]
    elif isinstance(image, Path | bytes):
        file, shown = (io.BytesIO(image), "bytes") if isinstance(image, bytes) else (image, str(image))
    else:
        raise ValueError(
            f"an image is {type(image).__name__}: expected a PIL image, an array, a tensor, a path, a URL, base64 text "
            "or bytes"
        )
    try:
        with open_image(file) as opened:
            return to_rgb(opened)
    except Exception as error:  # damaged images raise nearly anything
        raise ValueError(f"cannot read the image {shown!r} ({type(error).__name__}: {error})") from error


def _from_array(values: np.ndarray | torch.Tensor) -> Image.Image:
    values = values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else values
    channels_last = values.ndim == 2 or values.shape[-1] in (1, 3, 4)
    if values.ndim not in (2, 3) or not (channels_last or values.shape[0] in (1, 3, 4)) or not values.size:
        raise ValueError(f"an image is an array of shape {list(values.shape)}: expected [H, W, C], [C, H, W] or [H, W]")
    low, high = values.min(), values.max()
    if not (0 <= low and high <= 255):
        raise ValueError(f"an image's values are {low:g} to {high:g}: expected 0 to 255, or 0 to 1, unnormalised")
    floats = not np.issubdtype(values.dtype, np.integer) and values.dtype != bool and high <= 1
    values = (values * 255).round() if floats or values.dtype == bool else values
    values = values.astype(np.uint8) if channels_last else values.astype(np.uint8).transpose(1, 2, 0)
    return to_rgb(Image.fromarray(values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values))


def _file_of(text: str) -> Path | io.BytesIO:
    """What a text names or holds: a URL, a data URL, a path, or base64."""
    if text.startswith(("http://", "https://")):
        return io.BytesIO(_fetch(text))
    if text.startswith("data:"):
        return io.BytesIO(_decode(text.partition(",")[2], text))
    try:
        if Path(text).is_file():
            return Path(text)
    except (OSError, ValueError):  # too long for a path, or a NUL in it
        pass
    return io.BytesIO(_decode(text, text))


def _decode(encoded: str, shown: str) -> bytes:
    try:
        return base64.b64decode("".join(encoded.split()), validate=True) if encoded else b""
    except (binascii.Error, ValueError):
        raise ValueError(f"the image {shown[:60]!r} is neither an existing file, nor a URL, nor base64") from None


def _fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "prismatic"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"cannot fetch the image {url[:100]} ({reason}): give a path or a data URL") from error
    if len(found) > MOST_BYTES:
        raise ValueError(f"the image {url[:100]} has more than {MOST_BYTES >> 20} MB: give a path")
    return found


AutoImageProcessor.register(PrismaticConfig, slow_image_processor_class=PrismaticImageProcessor)
