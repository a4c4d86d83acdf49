"""The images of a request: data URLs, within bounds."""

import base64
import io

from PIL import Image

from recipes.serving.refusal import Refusal
from vision_backbones.safe_images import read_upright

MOST_IMAGES = 16  # of a request


def read_images(urls: dict[str, str]) -> tuple[Image.Image, ...]:
    """The decoded images of data URLs, given by their places in the request.

    Raises:
        Refusal: one is no data URL or cannot be read, or they are too many or too large together.
    """
    if len(urls) > MOST_IMAGES:
        raise Refusal(f"the request has {len(urls)} images, expected at most {MOST_IMAGES}", "messages")
    images, left = [], Image.MAX_IMAGE_PIXELS
    for place, url in urls.items():
        image = read_image(url, place, left)
        left = left and left - image.width * image.height
        images.append(image)
    return tuple(images)


def read_image(url: str, place: str, most_pixels: int | None) -> Image.Image:
    """The decoded image of one data URL, upright.

    Raises:
        Refusal: it is no data URL, or damaged, or has more than `most_pixels`.
    """
    head, _, data = url.partition(",")
    if not head.startswith("data:"):
        raise Refusal(
            f"{place} is {url[:40]!r}: this server opens no addresses and no files, "
            "send the image itself as data:image/png;base64,...",
            place,
        )
    if not head.endswith(";base64"):
        raise Refusal(f"{place} begins with {head[:40]!r}: expected data:image/png;base64,...", place)
    try:
        file = io.BytesIO(base64.b64decode("".join(data.split()), validate=True))
    except ValueError as error:
        raise Refusal(f"{place} is no base64: {error}", place) from None
    try:
        return read_upright(file, most_pixels)
    except ValueError as error:
        before = most_pixels not in (None, Image.MAX_IMAGE_PIXELS)
        left = ", which is what the images before it left of what a request may have" if before else ""
        raise Refusal(f"{place}: {error}{left if 'pixels' in str(error) else ''}", place) from None
