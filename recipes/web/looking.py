"""What the tab about patches shows, in numbers: each backbone's, each probe's, the mask's. Nothing of a page."""

import functools
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from eval.probing.data import centre_square, get_dataset
from eval.probing.labels import reduce_labels
from eval.probing.saved import SavedProbe, load_probe
from prismatic.miniature.segmentation import label_map
from prismatic.models.viewed import view
from recipes.chatting.pictures import SCENES, example
from vision_backbones import check_spec
from vision_backbones.maskembed.view import MaskedView, MaskEmbedView
from vision_backbones.patch_views import View, ViewedBackbone, similarity

FACTOR = 8  # how much they are enlarged
KEPT = 4  # backbones, and pictures of each, in memory
FINDING = 512  # pixels of the longer side of the picture by which places are found

_one_mask_at_a_time = threading.Lock()  # a mask hangs on the teacher while it runs
viewed: Callable[[str], ViewedBackbone] = functools.lru_cache(KEPT)(view)
probed: Callable[[str], SavedProbe] = functools.lru_cache(KEPT)(load_probe)
mask_view: Callable[[str], MaskEmbedView] = functools.lru_cache(KEPT)(MaskEmbedView)


def enlarged_example(number: int) -> Image.Image:
    """A drawn scene, every pixel `FACTOR` x `FACTOR` large."""
    drawn = example(number).image
    return Image.fromarray(drawn.repeat(FACTOR, 0).repeat(FACTOR, 1))


def example_of(picture: Image.Image) -> int | None:
    """Which drawn scene an RGB picture is; None for any other."""
    pixels = np.asarray(picture)
    same = (n for n in range(SCENES) if np.array_equal(pixels[::FACTOR, ::FACTOR], example(n).image))
    return next((n for n in same if np.array_equal(pixels, np.asarray(enlarged_example(n)))), None)


@dataclass(frozen=True)
class Picture:
    """A picture by its content: the image is as it was drawn where it is an enlarged scene."""

    digest: str
    image: Image.Image = field(compare=False)
    number: int | None = field(compare=False)

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """The picture of an RGB image."""
        number = example_of(image)
        image = image if number is None else Image.fromarray(example(number).image)
        return cls(hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest(), image, number)


@functools.lru_cache(2 * KEPT)
def seen(name: str, picture: Picture) -> View:
    """What a backbone sees and says of a picture."""
    return viewed(name)(picture.image)


def patch_of(row: int | None, column: int | None, grid: tuple[int, int]) -> int:
    """The number of the patch in a row and a column, counted from 1.

    Raises:
        ValueError: There is none.
    """
    for name, value, most in (("row", row, grid[0]), ("column", column, grid[1])):
        if value is None or not 1 <= value <= most:
            raise ValueError(f"{name} {value}: this backbone has {grid[0]} x {grid[1]} patches, give 1 to {most}")
    return (int(row) - 1) * grid[1] + int(column) - 1


def same_place(patch: int, grid: tuple[int, int], other: tuple[int, int]) -> int:
    """The patch of another grid in which the centre of a patch lies."""
    row, column = divmod(patch, grid[1])
    return int((row + 0.5) * other[0] / grid[0]) * other[1] + int((column + 0.5) * other[1] / grid[1])


def similarities(name: str, picture: Picture, patch: int) -> np.ndarray:
    """Cosine similarities of a patch to every patch, `[rows, columns]`."""
    return similarity(seen(name, picture).features, patch).view(viewed(name).grid).numpy()


def likest(values: np.ndarray, patch: int, most: int = 5) -> list[tuple[int, int, float]]:
    """Row and column, from 1, and value of the patches of the largest values `[rows, columns]`, but for `patch`."""
    order = [int(i) for i in np.argsort(-values.ravel(), kind="stable") if i != patch][:most]
    return [(i // values.shape[1] + 1, i % values.shape[1] + 1, float(values.flat[i])) for i in order]


def place_at(
    see: Callable[[Image.Image], Image.Image], size: tuple[int, int], x: int, y: int, grid: tuple[int, int]
) -> tuple[int, int]:
    """Row and column, from 0, of the patch that holds pixel (x, y) of a picture, however it is squashed or cropped.

    Args:
        see: From a picture to what the patches cover of it.
        size: Width and height of the picture.
        x: Pixels from the left.
        y: Pixels from the top.
        grid: Rows and columns of patches.
    """
    shrunk = FINDING / max(FINDING, *size)
    width, height = (max(1, round(length * shrunk)) for length in size)
    # Red says how far to the right, green how far down; blue is nowhere in it, but in what is put around a picture.
    across, down = (np.linspace(0, 255, 2 * length + 1)[1::2] for length in (width, height))
    ramps = np.zeros((height, width, 3))
    ramps[..., 0], ramps[..., 1] = across, down[:, None]
    found = np.asarray(see(Image.fromarray(ramps.round().astype(np.uint8))), float)
    wanted = np.array([(x + 0.5) / size[0] * 255, (y + 0.5) / size[1] * 255, 0])
    row, column = np.unravel_index(np.square(found - wanted).sum(-1).argmin(), found.shape[:2])
    return int(row) * grid[0] // found.shape[0], int(column) * grid[1] // found.shape[1]


@dataclass(frozen=True)
class Answer:
    """What a probe says of a picture.

    Attributes:
        square: RGB, what the probe sees.
        probabilities: `[rows, columns, C]`.
        predicted: Bool `[rows, columns, C]`: the likeliest class of each patch if it is above 0.5 (of `majority` labels
            whatever it is); of the whole image every class above 0.5.
        truth: Bool `[rows, columns, C]` of a drawn scene; None for any other picture, or a probe of other classes.
    """

    square: Image.Image
    probabilities: np.ndarray
    predicted: np.ndarray
    truth: np.ndarray | None


def ask_probe(saved: SavedProbe, picture: Picture) -> Answer:
    """What a probe says of a picture."""
    found = saved.probabilities([picture.image])[0].numpy()
    likeliest = np.eye(found.shape[-1], dtype=bool)[found.argmax(-1)]
    predicted = found > 0.5 if saved.labels == "global-union" else likeliest & (found > 0.5)
    if saved.labels == "majority":
        predicted = likeliest
    size = saved.probe.backbone.spec.image_size
    return Answer(seen_by_probe(saved, picture.image), found, predicted, _truth(saved, picture, size))


def seen_by_probe(saved: SavedProbe, image: Image.Image) -> Image.Image:
    """What the patches of a probe's backbone cover of an image, RGB."""
    rows, columns = saved.probe.backbone.grid
    return saved.square(image).crop((0, 0, columns * saved.patch, rows * saved.patch))


def _truth(saved: SavedProbe, picture: Picture, size: int) -> np.ndarray | None:
    if picture.number is None or saved.classes != get_dataset("miniature").classes:
        return None
    drawn = example(picture.number)
    whole = Image.fromarray(label_map(drawn.things, drawn.instance_map()))
    pixels = np.asarray(centre_square(whole, size, Image.Resampling.NEAREST))
    labels = reduce_labels(pixels, saved.patch, len(saved.classes), saved.labels)
    labels = np.eye(len(saved.classes), dtype=bool)[labels] if saved.labels == "majority" else labels
    return labels.reshape(*saved.grid, -1)


def aligned_of(names: list[str]) -> str:
    """The first of some backbones that was aligned.

    Raises:
        ValueError: None was.
    """
    for name in names:
        if check_spec(name).aligned:
            return name
    raise ValueError(f"{' and '.join(names)}: not aligned, nothing was masked in training; choose miniature-aligned")


def masked(name: str, picture: Picture, hidden: set[int]) -> MaskedView:
    """What MaskEmbed makes of a picture whose patches of some numbers are hidden."""
    found = mask_view(name)
    visible = torch.tensor([number not in hidden for number in range(found.grid[0] * found.grid[1])])
    with _one_mask_at_a_time:
        return found(picture.image, visible)
