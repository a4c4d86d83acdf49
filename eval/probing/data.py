"""Images with a label for every pixel, in the layouts of COCO-Stuff and ADE20K, and what patches of them hold.

`python -m eval.probing.data coco DIR` checks a copy before hours depend on it.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as T
from tqdm import tqdm

from eval.probing.classes import ADE20K, COCO_STUFF
from eval.probing.labels import pack, reduce_labels
from prismatic.data.conversation_dataset import BadImageError
from prismatic.miniature.scenes import CLASSES as SCENE_CLASSES
from vision_backbones import BackboneSpec
from vision_backbones.names import suggest
from vision_backbones.safe_images import open_image, to_rgb

SHOWN = 10  # names in a message
THINGS = 92  # COCO's unlabeled and thing classes
INVALID = 255  # in place of a class


@dataclass(frozen=True)
class SegmentationSet:
    """A data set on disk: `images/FOLDER/NAME.jpg` with `annotations/FOLDER/NAME.png`, 8-bit, one value a class.

    Attributes:
        name: On the command line.
        folders: FOLDER of `train` and `val`.
        classes: Names; 0 belongs to none.
        class_of: Class of every pixel value 0 to 255, uint8, `INVALID` where there is none.
        official: Number of pairs of `train` and `val`, None where it is not fixed.
    """

    name: str
    folders: dict[str, str]
    classes: tuple[str, ...]
    class_of: np.ndarray
    official: dict[str, int] | None = None


def _identity(classes: int) -> np.ndarray:
    values = np.arange(256)
    return np.where(values < classes, values, INVALID).astype(np.uint8)


def _coco(things: bool) -> SegmentationSet:
    # A pixel holds the id less 1; 255 is unlabeled. Beyond the last class there are no ids.
    ids = (np.arange(256) + 1) % 256
    class_of = np.where(ids < len(COCO_STUFF), ids, INVALID)
    if things:
        class_of[(class_of >= THINGS) & (class_of != INVALID)] = 0
    folders = {"train": "train2017", "val": "val2017"}
    name, classes = ("coco-things", COCO_STUFF[:THINGS]) if things else ("coco", COCO_STUFF)
    return SegmentationSet(name, folders, classes, class_of.astype(np.uint8), {"train": 118_287, "val": 5_000})


_ADE_FOLDERS = {"train": "training", "val": "validation"}
DATASETS = {
    known.name: known
    for known in (
        _coco(things=False),
        _coco(things=True),
        SegmentationSet("ade20k", _ADE_FOLDERS, ADE20K, _identity(len(ADE20K)), {"train": 20_210, "val": 2_000}),
        SegmentationSet("miniature", _ADE_FOLDERS, ("background", *SCENE_CLASSES), _identity(1 + len(SCENE_CLASSES))),
    )
}


def get_dataset(name: str) -> SegmentationSet:
    """The data set of a name.

    Raises:
        ValueError: There is none; near names are listed.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset '{name}': {suggest(name, DATASETS)}")
    return DATASETS[name]


def find_root(dataset: SegmentationSet, location: str) -> Path:
    """The folder that holds a data set's `images/` and `annotations/`; scenes are drawn for `miniature:TRAIN:VAL`.

    Raises:
        ValueError: There is none.
    """
    if location.startswith("miniature:"):
        numbers = re.fullmatch(r"miniature:([1-9]\d*):([1-9]\d*)", location)
        if not numbers:
            raise ValueError(f"{location!r} names no scenes; expected miniature:TRAIN:VAL, such as miniature:4000:500")
        if dataset.name != "miniature":
            raise ValueError(f"{location} are scenes of the miniature world, not {dataset.name}: --dataset miniature")
        from prismatic.miniature.segmentation import miniature_ade20k

        return miniature_ade20k(*map(int, numbers.groups()))
    root = Path(location)
    if not root.is_dir():
        raise ValueError(f"no folder {root}: give --data_root the folder that holds images/ and annotations/")
    missing = [part for part in ("images", "annotations") if not (root / part).is_dir()]
    if missing:
        inner = sorted(p.parent for p in root.glob("*/annotations") if (p.parent / "images").is_dir())
        hint = f"did you mean {' or '.join(map(str, inner))}?" if inner else "see docs/probe.md for the layout"
        raise ValueError(f"{root} has no {' and no '.join(f'{part}/' for part in missing)}: {hint}")
    return root


def list_pairs(dataset: SegmentationSet, root: Path, split: str, partial: bool = False) -> list[tuple[Path, Path]]:
    """Image and label map of every pair of a split, sorted by name; nothing is decoded yet.

    Raises:
        ValueError: A pair is not complete (the missing files are listed), or there are other than the official number
            and `partial` does not allow for that.
    """
    folder = dataset.folders[split]
    found = []
    for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
        if not (root / part / folder).is_dir():
            raise ValueError(f"no folder {root / part / folder}: {dataset.name} keeps its {part} of {split} there")
        found.append({p.stem: p for p in (root / part / folder).iterdir() if p.suffix.lower() == suffix})
    images, maps = found
    lacking = [f"{root / 'annotations' / folder / name}.png" for name in sorted(images.keys() - maps.keys())]
    lacking += [f"{root / 'images' / folder / name}.jpg" for name in sorted(maps.keys() - images.keys())]
    if lacking:
        raise MissingPairsError(f"{dataset.name} {split}: {len(images):,} images, {len(maps):,} label maps", lacking)
    if not images:
        raise ValueError(f"{root / 'images' / folder} holds no .jpg: unpack {dataset.name} there")
    expected = dataset.official and dataset.official[split]
    if expected and len(images) != expected and not partial:
        raise ValueError(
            f"{root / 'images' / folder} holds {len(images):,} pairs, {dataset.name} {split} has {expected:,}: "
            "complete the download, or use what is there with --partial true (results are then not comparable)"
        )
    return [(images[name], maps[name]) for name in sorted(images)]


class MissingPairsError(ValueError):
    """Files that are not there although their partners are: `lacking`, all of them."""

    def __init__(self, what: str, lacking: list[str]):
        self.lacking = lacking
        more = f", and {len(lacking) - SHOWN:,} more" if len(lacking) > SHOWN else ""
        super().__init__(
            f"{what}; {len(lacking):,} files are missing: {', '.join(lacking[:SHOWN])}{more}; all are listed by "
            "python -m eval.probing.data"
        )


def read_pair(dataset: SegmentationSet, image_path: Path, map_path: Path) -> tuple[Image.Image, Image.Image]:
    """An image, RGB, and the values of its label map, mode L or P, both in full.

    Raises:
        BadImageError: One cannot be read, the map is not 8-bit, of another size, or has a value that is no class.
    """
    image, values = (_open(path) for path in (image_path, map_path))
    if values.mode not in ("L", "P"):
        raise BadImageError(
            f"{map_path} is of mode {values.mode}, expected 8 bits per pixel, one value per class: "
            "is it from a release with a different encoding?"
        )
    if values.size != image.size:
        raise BadImageError(
            f"{map_path} is {values.size[0]} x {values.size[1]} pixels, its image {image_path} is {image.size[0]} x "
            f"{image.size[1]}: they must be equal"
        )
    present = np.flatnonzero(np.bincount(np.asarray(values).ravel(), minlength=256))
    if (wrong := present[dataset.class_of[present] == INVALID]).size:
        raise BadImageError(
            f"{map_path} has the values {', '.join(map(str, wrong[:SHOWN]))}, which are not classes of {dataset.name} "
            f"({len(dataset.classes)} classes): it is from another data set, or encoded differently"
        )
    return to_rgb(image), values


def _open(path: Path) -> Image.Image:
    try:
        with open_image(path) as image:
            image.load()
            return image
    except Exception as error:  # damaged files raise nearly anything
        raise BadImageError(f"{path}: unreadable ({type(error).__name__}: {error}); replace it") from error


def centre_square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """The largest square in the centre of an image, resized to `size` pixels a side."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side)).resize((size, size), resample)


def square_pixels(image: Image.Image, spec: BackboneSpec) -> torch.Tensor:
    """Pixels `[3 * parts, S, S]` of a square RGB image, normalised as each part of a resolved spec wants them."""
    pixels = T.functional.to_tensor(image)
    return torch.cat([T.functional.normalize(pixels, part.mean, part.std) for part in spec.parts or (spec,)])


class PatchExamples(Dataset):
    """Pixels and patch labels of pairs, decoded where they are asked for.

    `examples[row]` gives `pixel_values`, float32 `[3 * parts, S, S]`, and under each kind of labels what `pack` made
    of them. The largest square in the centre is resized to the backbone's image size: bilinear, labels to the nearest.
    """

    def __init__(
        self,
        dataset: SegmentationSet,
        pairs: list[tuple[Path, Path]],
        spec: BackboneSpec,
        patch: int,
        kinds: list[str],
    ):
        """Takes a resolved spec, its patch side in pixels, and the kinds of labels."""
        self.dataset, self.pairs, self.patch, self.kinds = dataset, pairs, patch, kinds
        self.spec, self.size = spec, spec.image_size

    def __len__(self) -> int:
        return len(self.pairs)

    def square(self, row: int) -> tuple[Image.Image, np.ndarray]:
        """The square image, RGB, and the class of its pixels, uint8 `[S, S]`."""
        image, values = read_pair(self.dataset, *self.pairs[row])
        values = centre_square(values, self.size, Image.Resampling.NEAREST)
        return centre_square(image, self.size), self.dataset.class_of[np.asarray(values)]

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        image, label_map = self.square(row)
        classes = len(self.dataset.classes)
        labels = {kind: reduce_labels(label_map, self.patch, classes, kind) for kind in self.kinds}
        return {"pixel_values": square_pixels(image, self.spec)} | {
            kind: torch.from_numpy(pack(value)) for kind, value in labels.items()
        }


def problems(dataset: SegmentationSet, root: Path) -> Iterator[str]:
    """Everything that is wrong with a copy, line by line; every file is decoded."""
    for split in dataset.folders:
        try:
            pairs = list_pairs(dataset, root, split, partial=True)
        except MissingPairsError as error:
            yield from (f"missing: {path}" for path in error.lacking)
            continue
        except ValueError as error:
            yield str(error)
            continue
        if dataset.official and len(pairs) != dataset.official[split]:
            yield f"{split} has {len(pairs):,} pairs, expected {dataset.official[split]:,}"
        for pair in tqdm(pairs, desc=f"checking {split}"):
            try:
                read_pair(dataset, *pair)
            except BadImageError as error:
                yield str(error)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m eval.probing.data", description="Checks every pair of a data set.")
    parser.add_argument("dataset", help=", ".join(DATASETS))
    parser.add_argument("root", help="the folder that holds images/ and annotations/")
    arguments = parser.parse_args()
    try:
        dataset = get_dataset(arguments.dataset)
        found = list(problems(dataset, find_root(dataset, arguments.root)))
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    print("\n".join([*found, f"{len(found):,} problems" if found else "no problems"]))
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
