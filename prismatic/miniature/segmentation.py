"""The miniature world with a label for every pixel, in the layout of ADE20K."""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from prismatic.miniature.llava_writer import WORLD_VERSION, all_or_nothing, cached
from prismatic.miniature.scenes import CLASSES, scene

SEEDS = {"training": 5, "validation": 6}  # worlds that no backbone was trained on


def label_map(things, owners: np.ndarray) -> np.ndarray:
    """The class of every pixel, uint8 of `owners`' shape: 0 background, i + 1 the i-th of `scenes.CLASSES`."""
    return np.array([0, *(CLASSES.index(thing.name) + 1 for thing in things)], np.uint8)[owners]


@all_or_nothing
def write_ade20k(folder: Path, train: int, val: int) -> None:
    """Writes `images/SPLIT/*.jpg` and `annotations/SPLIT/*.png` for training and validation; returns `folder`.

    JPEGs are of the highest quality. Nothing is written if the folder is there already; it appears only when it is
    complete.
    """
    for (split, seed), count in zip(SEEDS.items(), (train, val), strict=True):
        images, maps = folder / "images" / split, folder / "annotations" / split
        images.mkdir(parents=True), maps.mkdir(parents=True)
        for index in tqdm(range(count), desc=f"drawing scenes ({split})", disable=count < 2000):
            drawn = scene(seed, index)
            name = f"ADE_{'train' if split == 'training' else 'val'}_{index + 1:08d}"
            Image.fromarray(drawn.image).save(images / f"{name}.jpg", quality=100, subsampling=0)
            Image.fromarray(label_map(drawn.things, drawn.instance_map())).save(maps / f"{name}.png", compress_level=1)


def miniature_ade20k(train: int, val: int) -> Path:
    """The folder of `write_ade20k` in the user's cache, written on first use."""
    return write_ade20k(cached(f"ade20k-v{WORLD_VERSION}-{train}-{val}"), train, val)
