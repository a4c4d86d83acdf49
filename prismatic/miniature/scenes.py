"""Procedurally drawn scenes: a few objects of some shape, colour and size on a noisy background.

A scene is a pure function of `(seed, index)`; its layout (which objects, where) is sampled apart from the drawing, so
that text about scenes can be made without drawing any.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 48  # pixels
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (205, 45, 45), "green": (45, 165, 60), "blue": (55, 85, 215), "yellow": (220, 200, 45)}
HALF_EXTENT = {"small": 4, "large": 7}  # pixels from the centre of an object to the edge of its box
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)  # what an image-level label names
MAX_OBJECTS = 4

_ROWS, _COLUMNS = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` are its centre in pixels (origin top left)."""

    shape: str
    colour: str
    size: str
    x: int
    y: int

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """`(x1, y1, x2, y2)` in pixels; the last column and row are excluded."""
        half = HALF_EXTENT[self.size]
        return self.x - half, self.y - half, self.x + half, self.y + half

    def mask(self) -> np.ndarray:
        """The pixels it covers, bool `[IMAGE_SIZE, IMAGE_SIZE]`."""
        half = HALF_EXTENT[self.size]
        dx, dy = np.abs(_COLUMNS - self.x), np.abs(_ROWS - self.y)
        inside = np.maximum(dx, dy) <= half
        if self.shape == "circle":
            return dx**2 + dy**2 <= half**2
        if self.shape == "triangle":  # apex on top
            return inside & (dx <= (_ROWS - self.y + half) / 2)
        if self.shape == "cross":
            return inside & (np.minimum(dx, dy) <= half / 3)
        return inside


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `image` is uint8 `[IMAGE_SIZE, IMAGE_SIZE, 3]`; no two boxes of `things` touch."""

    things: tuple[Thing, ...]
    image: np.ndarray

    def instance_map(self) -> np.ndarray:
        """Which object owns a pixel: 0 background, i + 1 the i-th thing; uint8 `[IMAGE_SIZE, IMAGE_SIZE]`."""
        owners = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        for number, thing in enumerate(self.things, start=1):
            owners[thing.mask()] = number
        return owners


def sample_layout(rng: np.random.Generator, min_objects: int = 1, max_objects: int = MAX_OBJECTS) -> tuple[Thing, ...]:
    """Objects whose boxes lie inside the image and keep two pixels apart, at least `min_objects` wherever they fit."""
    things: list[Thing] = []
    for _ in range(rng.integers(min_objects, max_objects + 1)):
        shape, colour = SHAPES[rng.integers(len(SHAPES))], tuple(COLOURS)[rng.integers(len(COLOURS))]
        size = ("small", "large")[rng.integers(2)]
        half = HALF_EXTENT[size]
        for x, y in rng.integers(half + 1, IMAGE_SIZE - half, size=(20, 2)).tolist():
            thing = Thing(shape, colour, size, x, y)
            if fits(thing, things):
                things.append(thing)
                break
    return tuple(things)


def fits(thing: Thing, others: Iterable[Thing]) -> bool:
    """Whether a thing lies inside the image, its box at least two pixels from those of others."""
    half = HALF_EXTENT[thing.size]
    inside = all(half < place < IMAGE_SIZE - half for place in (thing.x, thing.y))
    gaps = [max(abs(thing.x - t.x), abs(thing.y - t.y)) - half - HALF_EXTENT[t.size] for t in others]
    return inside and all(gap >= 2 for gap in gaps)


def draw(things: tuple[Thing, ...], rng: np.random.Generator) -> np.ndarray:
    """The picture of a layout, uint8 `[IMAGE_SIZE, IMAGE_SIZE, 3]`: tilted grey background, jittered colours, noise."""
    tilt = rng.normal(0, 0.5, size=2)
    level = rng.uniform(90, 150) + tilt[0] * (_ROWS - IMAGE_SIZE / 2) + tilt[1] * (_COLUMNS - IMAGE_SIZE / 2)
    canvas = np.repeat(level[..., None], 3, axis=2)
    for thing in things:
        canvas[thing.mask()] = np.array(COLOURS[thing.colour]) + rng.normal(0, 12, size=3)
    canvas += rng.normal(0, 14, size=canvas.shape)
    return canvas.clip(0, 255).astype(np.uint8)


def scene(seed: int, index: int, min_objects: int = 1, max_objects: int = MAX_OBJECTS) -> Scene:
    """The `index`-th scene of the world `seed`, the same on every machine and in every order of asking."""
    rng = np.random.default_rng((seed, index))
    things = sample_layout(rng, min_objects, max_objects)
    return Scene(things, draw(things, rng))


def scenes(seed: int, start: int, stop: int, **limits: int) -> Iterator[Scene]:
    """Streams `scene(seed, start) ... scene(seed, stop - 1)`."""
    return (scene(seed, index, **limits) for index in range(start, stop))
