"""From a PIL image to the pixels a backbone wants: three ways to make it square."""

import math
from collections.abc import Callable

import torch
from PIL import Image, ImageOps
from torchvision import transforms as T

from vision_backbones.registry import resolve_spec
from vision_backbones.spec import BackboneSpec, closest

STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


def image_transform(
    spec: BackboneSpec, strategy: str = "resize-naive", image_size: int | None = None
) -> Callable[[Image.Image], torch.Tensor]:
    """Gives a picklable callable from a PIL image of any mode to normalised pixels `[3 * parts, H, W]`.

    resize-naive squashes to the square; resize-crop resizes the shorter edge and crops the centre; letterbox first
    pads to a square with the mean colour. Needs no weights.

    Raises:
        ValueError: If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"unknown image resize strategy '{strategy}'{closest(strategy, list(STRATEGIES))}; {STRATEGIES}"
        )
    spec = resolve_spec(spec, image_size=image_size)
    if spec.parts:
        return Stack([image_transform(part, strategy) for part in spec.parts])
    size, mode = spec.image_size, T.InterpolationMode(spec.interpolation)
    if strategy == "resize-naive":
        square = [T.Resize((size, size), mode)]
    else:
        square = [T.Resize(math.floor(size / spec.crop_pct), mode), T.CenterCrop(size)]
    if strategy == "letterbox":
        square.insert(0, Letterbox(spec.mean))
    return T.Compose([T.Lambda(to_rgb), *square, T.ToTensor(), T.Normalize(spec.mean, spec.std)])


def to_rgb(image: Image.Image) -> Image.Image:
    """Gives the image in mode RGB; 16-bit grey is scaled to 8 bits, transparency is dropped."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class Letterbox:
    """Pads an RGB image to a square with the colour `mean` (fractions), the image in the middle.

    An odd difference leaves the square one pixel short, as the published models saw it; the centre crop evens it out.
    """

    def __init__(self, mean: tuple[float, float, float]):
        self.fill = tuple(int(255 * value) for value in mean)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Gives the padded image."""
        side = max(image.size)
        horizontal, vertical = ((side - length) // 2 for length in image.size)
        return ImageOps.expand(image, (horizontal, vertical, horizontal, vertical), self.fill)


class Stack:
    """Several transforms of the same image, stacked over channels."""

    def __init__(self, transforms: list[Callable[[Image.Image], torch.Tensor]]):
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Gives pixels `[3 * transforms, H, W]`."""
        return torch.cat([transform(image) for transform in self.transforms])
