"""From a PIL image to the pixels a backbone wants: three ways to make it square."""

import math
from collections.abc import Callable

import torch
from PIL import Image, ImageOps
from torchvision import transforms as T

from vision_backbones.names import suggest
from vision_backbones.registry import resolve_spec
from vision_backbones.safe_images import to_rgb
from vision_backbones.spec import BackboneSpec

MOST_PIXELS = 2**25  # of an image on the way to the square; more only where the image itself is as large
LONGEST = 2**16  # pixels of an edge that is resized as it is
STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


def image_transform(
    spec: BackboneSpec, strategy: str = "resize-naive", image_size: int | None = None
) -> Callable[[Image.Image], torch.Tensor]:
    """Returns a picklable callable from a PIL image of any mode to normalised pixels `[3 * parts, H, W]`.

    resize-naive squashes to the square; resize-crop resizes the shorter edge and crops the centre; letterbox first
    pads to a square with the mean colour. Needs no weights.

    Raises:
        ValueError: If the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown image resize strategy '{strategy}': {suggest(strategy, STRATEGIES)}")
    spec = resolve_spec(spec, image_size=image_size)
    if spec.parts:
        return Stack([image_transform(part, strategy) for part in spec.parts])
    size, mode = spec.image_size, T.InterpolationMode(spec.interpolation)
    bounded = Bounded()
    if strategy == "resize-naive":
        square = [T.Resize((size, size), mode)]
    else:
        short = math.floor(size / spec.crop_pct)
        square = [T.Resize(short, mode), T.CenterCrop(size)]
    if strategy == "letterbox":
        square.insert(0, Letterbox(spec.mean))
    if strategy == "resize-crop":
        bounded = Bounded(short, size)
    return T.Compose([T.Lambda(bounded), *square, T.ToTensor(), T.Normalize(spec.mean, spec.std)])


class Bounded:
    """Returns an image in mode RGB of which no later step makes gigabytes; only very long and thin ones are changed.

    Neighbouring pixels along an edge of more than `LONGEST` are averaged. With `crop`, the middle is kept that a square
    of so many pixels needs once the shorter edge is resized to `short`.
    """

    def __init__(self, short: int = 0, crop: int = 0):
        self.short, self.crop = short, crop

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns the image."""
        image = to_rgb(image)
        factors = tuple(max(1, length >> 15) if length > LONGEST else 1 for length in image.size)
        image = image if factors == (1, 1) else image.reduce(factors)
        scale, pixels = self.short / min(image.size), image.width * image.height
        if not self.crop or pixels * scale**2 <= max(MOST_PIXELS, pixels):
            return image
        kept = math.ceil(self.crop / scale) + 8  # and what filters reach beyond
        left, top = (max(0, (length - kept) // 2) for length in image.size)
        return image.crop((left, top, image.width - left, image.height - top))


class Letterbox:
    """Pads an RGB image to a square with the colour `mean` (fractions), the image in the middle.

    An odd difference leaves the square one pixel short, as the published models saw it; the centre crop evens it out.
    """

    def __init__(self, mean: tuple[float, float, float]):
        self.fill = tuple(int(255 * value) for value in mean)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns the padded image; a thin one is made smaller before, else a few pixels would fill gigabytes."""
        side, pixels = max(image.size), image.width * image.height
        if side**2 > max(MOST_PIXELS, 4 * pixels):
            shrink = math.isqrt(MOST_PIXELS) / side
            image = image.resize([max(1, round(length * shrink)) for length in image.size], Image.Resampling.BICUBIC)
            side = max(image.size)
        horizontal, vertical = ((side - length) // 2 for length in image.size)
        return ImageOps.expand(image, (horizontal, vertical, horizontal, vertical), self.fill)


class Stack:
    """Several transforms of the same image, stacked over channels."""

    def __init__(self, transforms: list[Callable[[Image.Image], torch.Tensor]]):
        self.transforms = transforms

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Returns pixels `[3 * transforms, H, W]`."""
        return torch.cat([transform(image) for transform in self.transforms])
