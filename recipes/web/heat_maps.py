"""Pictures of numbers on patches: heat maps with their scale, colours, classes. Pillow in, Pillow out."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from eval.probing.plots import paint

SIDE = 384  # pixels that a picture is enlarged to at least, in whole steps
BLEND = 0.6  # how much of a patch is its value's colour; the rest is the picture
BAR = (384, 52)  # pixels of a scale
MARGIN = 30  # pixels beside the colours of a scale
READABLE = 14  # pixels of a patch, at least, for a number in it


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture, every pixel a square: as large as the longer side comes to about `SIDE`; large ones as they are."""
    times = _times(max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def cell(grid: tuple[int, int], patch: int) -> int:
    """Side in pixels of a patch in the enlarged picture of so many rows and columns of patches."""
    return patch * _times(patch * max(grid))


def _times(side: int) -> int:
    return max(1, round(SIDE / side))


def value_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Viridis, which colour-blind people can read: uint8 `[..., 3]` of values from `low` to `high`."""
    shares = (np.asarray(values, float) - low) / max(high - low, 1e-12)
    return (colormaps["viridis"](shares.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)


def heat_map(
    picture: Image.Image, values: np.ndarray, low: float, high: float, chosen: tuple[int, int] | None = None
) -> Image.Image:
    """The enlarged picture, `BLEND` of every patch in the colour of its value.

    Args:
        picture: RGB, what the patches cover.
        values: `[rows, columns]`.
        low: Of the scale.
        high: Of the scale.
        chosen: Row and column of a patch to outline.
    """
    base = enlarged(picture)
    tint = Image.fromarray(value_colours(values, low, high)).resize(base.size, Image.Resampling.NEAREST)
    found = Image.blend(base, tint, BLEND)
    return outlined(found, values.shape, chosen) if chosen else found


def outlined(picture: Image.Image, grid: tuple[int, int], chosen: tuple[int, int]) -> Image.Image:
    """The picture with a patch outlined in white within black, seen on any ground."""
    height, width = picture.height // grid[0], picture.width // grid[1]
    left, top = chosen[1] * width, chosen[0] * height
    line, draw = max(1, min(width, height) // 16), ImageDraw.Draw(picture)
    for inset, colour in ((0, "black"), (line, "white")):
        corner = (left + width - 1 - inset, top + height - 1 - inset)
        draw.rectangle((left + inset, top + inset, *corner), outline=colour, width=line)
    return picture


def scale(low: float, high: float, title: str) -> Image.Image:
    """The colours from `low` to `high` beside each other, with numbers below."""
    width, height = BAR
    bar = Image.new("RGB", BAR, "white")
    ramp = value_colours(np.linspace(0, 1, width - 2 * MARGIN)[None], 0, 1)
    bar.paste(Image.fromarray(ramp).resize((width - 2 * MARGIN, 16)), (MARGIN, 18))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(12)
    draw.text((width / 2, 2), title, "black", font, anchor="ma")
    for share in (0, 0.5, 1):
        text = f"{low + share * (high - low):.3g}"
        draw.text((MARGIN + share * (width - 2 * MARGIN), 36), text, "black", font, anchor="ma")
    return bar


def colour_grid(colours: np.ndarray) -> Image.Image:
    """Patches in colours of their own, uint8 `[rows, columns, 3]`, enlarged."""
    return enlarged(Image.fromarray(colours))


def class_grid(picture: Image.Image, present: np.ndarray, chosen: tuple[int, int] | None = None) -> Image.Image:
    """The enlarged picture, its patches in the colours of their classes with the classes' numbers in them.

    Several classes share a patch as stripes; class 0 is left clear.

    Args:
        picture: RGB, what the patches cover.
        present: Bool `[rows, columns, C]`.
        chosen: Row and column of a patch to outline.
    """
    base = enlarged(picture)
    side = base.width // present.shape[1]
    found = Image.fromarray(paint(np.asarray(base), present, side))
    if chosen:
        outlined(found, present.shape[:2], chosen)
    if side < READABLE:
        return found
    draw = ImageDraw.Draw(found)
    for row, column in np.argwhere(present[..., 1:].any(-1)):
        text = "+".join(str(number) for number in np.flatnonzero(present[row, column, 1:]) + 1)
        font = ImageFont.load_default(max(8, min(16, int(1.6 * side / len(text)))))
        place = ((column + 0.5) * side, (row + 0.5) * side)
        draw.text(place, text, "white", font, anchor="mm", stroke_width=1, stroke_fill="black")
    return found


def places(cells: np.ndarray, most: int = 8) -> str:
    """Rows and columns, counted from 1, where bool `[rows, columns]` is true, as text."""
    found: Sequence = np.argwhere(cells) + 1
    shown = [f"({row}, {column})" for row, column in found[:most]]
    return ", ".join([*shown, f"and {len(found) - most} more"] if len(found) > most else shown)
