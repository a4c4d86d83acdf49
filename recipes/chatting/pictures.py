"""Pictures that a user names, and drawn ones to begin with."""

import functools
from pathlib import Path

from PIL import Image

from prismatic.miniature.llava_writer import WORLD_VERSION, cached
from prismatic.miniature.scenes import Scene, scene
from vision_backbones.files import replacing
from vision_backbones.safe_images import read_upright

WORLD, SCENES, FEWEST = 11, 6, 3  # of the drawn examples: the seed, how many, and how many objects at least


def open_picture(file: str | Path) -> Image.Image:
    """The picture in a file, in RGB, upright as people see it.

    Raises:
        ValueError: There is no such file, or it is no picture.
    """
    if not Path(file).is_file():
        raise ValueError(f"no picture {file}")
    try:
        return read_upright(file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


@functools.cache
def example(number: int) -> Scene:
    """One of the drawn scenes, of a world that nothing was trained on."""
    return scene(WORLD, number, min_objects=FEWEST)


def example_file(number: int) -> Path:
    """The file of a drawn scene, in the user's cache."""
    path = cached(f"examples-v{WORLD_VERSION}") / f"{number}.png"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as tmp_path:
            Image.fromarray(example(number).image).save(tmp_path, "PNG")
    return path
