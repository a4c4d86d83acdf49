"""Measures how many images one loader core delivers: `python benchmarks/image_loader.py`.

JPEGs of 500 x 375 pixels with structure at all scales are decoded, augmented (rkrc, horizontal flip) to 224 pixels and
joined with three masks an image, in the one worker of a `DataLoader`. The best stretch counts: other processes only
ever slow it down.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from prismatic.data.images import TrainingImages, Transform, collate_images, open_images, training_transform
from vision_backbones.table import table

COUNT, BATCH, STRETCHES = 256, 8, 3
PATCHES = 196


def jpeg(rng: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 pixels: coarse shapes, finer ones and some grain."""
    pixels = np.zeros((375, 500, 3))
    for divisor, strength in ((60, 60), (12, 30), (3, 22), (1, 10)):
        coarse = rng.normal(128, strength, (375 // divisor + 1, 500 // divisor + 1, 3)).clip(0, 255).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), float) - 128
    file = io.BytesIO()
    Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_images(folder: Path, count: int = COUNT) -> tuple[str, str]:
    """Writes the same images as files and as a tar shard; gives the places of both."""
    rng = np.random.default_rng(0)
    (folder / "files" / "n01440764").mkdir(parents=True)
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for number in range(count):
            path = folder / "files" / "n01440764" / f"{number:06d}.JPEG"
            path.write_bytes(jpeg(rng))
            tar.add(path, path.name)
    return str(folder / "files"), str(folder / "shard-000.tar")


def three_masks(rng: np.random.Generator) -> torch.Tensor:
    """A mask of uniform rate, its complement and the null mask: bool [3, 196]."""
    draws = rng.uniform(size=PATCHES + 1)
    mask = torch.from_numpy(draws[1:] > draws[0])
    return torch.stack([mask, ~mask, torch.ones_like(mask)])


def images_per_second(location: str, transform: Transform, masks: Callable = three_masks) -> float:
    """Images a second that one worker process delivers to this one, which does nothing else meanwhile."""
    source = open_images(location)
    examples = TrainingImages(source, transform, seed=0, masks=masks)
    size = len(source) // BATCH * BATCH
    rows = [int(row) for epoch in range(1 + STRETCHES) for row in source.order(epoch)[:size]]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    loader = DataLoader(examples, batch_sampler=batches, collate_fn=collate_images, num_workers=1)
    arrivals = [time.perf_counter() for _ in loader]
    stretch = size // BATCH
    return size / min(arrivals[end] - arrivals[end - stretch] for end in range(2 * stretch - 1, len(arrivals), stretch))


def main() -> None:
    """Prints images a second by place and transform."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # for the index of the shard
        files, shard = write_images(Path(folder))
        size = Path(shard).stat().st_size / COUNT / 1000
        print(f"{COUNT} JPEGs of 500 x 375 pixels, {size:.0f} kB each; one worker, one thread, three masks an image")
        plain = training_transform("in1k-vit-l", crop_mode="none")
        augmented = training_transform("in1k-vit-l")
        rows = [
            ("folder, rkrc 224 px", images_per_second(files, augmented)),
            ("tar shard, rkrc 224 px", images_per_second(shard, augmented)),
            ("folder, centre crop 224 px", images_per_second(files, plain)),
            ("miniature scenes, rkrc 48 px", images_per_second(f"miniature:{COUNT}", training_transform("miniature"))),
        ]
    print(table(rows, ("source", "images/s")))


if __name__ == "__main__":
    main()
