"""Image files that strangers named and made: where they may lie, and how much they may unpack to."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Pillow tells formats by content, and opens some, whatever the file is called, with other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Remarks on odd palettes and metadata, over and over in every worker. A filter for a while would not suit threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def leads_out(path: str) -> bool:
    """Whether a path, relative to a folder, is absolute, holds `..` or a NUL; backslashes count as slashes."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or "\0" in path


@contextmanager
def open_image(file: str | Path | IO[bytes]) -> "Iterator[Image.Image]":
    """The image in a file, of which no more than the header is read yet; closed in the end.

    Raises:
        Image.DecompressionBombError: It has more than `Image.MAX_IMAGE_PIXELS` (Pillow: 89 million) pixels.
        OSError: It is no image of one of `FORMATS`. Damaged ones raise nearly anything.
    """
    from PIL import Image

    with Image.open(file, formats=FORMATS) as image:
        limit, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
        if limit is not None and width * height > limit:  # up to twice as many, Pillow only warns
            raise Image.DecompressionBombError(
                f"{width:,} x {height:,} pixels, expected at most {limit:,}: it may be a decompression bomb"
            )
        yield image


def read_upright(file: str | Path | IO[bytes], most_pixels: int | None = None) -> "Image.Image":
    """The picture in a file that somebody hands over, in RGB, turned as its EXIF orientation says: as people see it.

    Args:
        file: Path, or a file of bytes.
        most_pixels: None for Pillow's own limit.

    Raises:
        ValueError: It is no image of one of `FORMATS`, damaged, or has too many pixels; one line that says so.
    """
    from PIL import ImageOps, UnidentifiedImageError

    try:
        with open_image(file) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise ValueError(f"{image.width:,} x {image.height:,} pixels, expected at most {most_pixels:,}")
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:  # whose message may be about an object in memory
        raise ValueError(f"no image of a known format, expected {', '.join(FORMATS)}") from None
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"cannot be read as an image: {' '.join(str(error).split())[:200]}") from None


def to_rgb(image: "Image.Image") -> "Image.Image":
    """The image in mode RGB; grey of more bits is scaled to 8, transparency is dropped.

    Raises:
        ValueError: The values of a 32-bit image have no range that is known: 0 to 1, to 255 or to 65535.
    """
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip at 255 instead of scaling
        from PIL import Image

        image = Image.fromarray(_eight_bits(image))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _eight_bits(image: "Image.Image") -> "np.ndarray":
    import numpy as np

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (0 <= low and high <= 65535):  # nan included
        raise ValueError(f"its values are {low:g} to {high:g}, expected 0 to 1, 255 or 65535: convert it to 8 bits")
    if image.mode == "F" and high <= 1:
        values = values * 255
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF") or high > 255:
        values = values // 256
    return values.astype(np.uint8)
