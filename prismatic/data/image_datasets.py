"""Images with or without classes, by row number: folders, tar shards, scenes of the miniature world."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from prismatic.data.conversation_dataset import BadImageError
from prismatic.data.tar_index import index_of, matching
from prismatic.miniature.scenes import CLASSES, HALF_EXTENT, scene
from vision_backbones.safe_images import open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in any case
SPLITS = ("train", "val", "validation", "test")
SHARDS_AT_ONCE = 16  # an epoch's order mixes the rows of so many shards
OPEN_SHARDS = 64  # file handles a process keeps
EXPECTED = "a folder of images, tar shards (DIR/*.tar, DIR/name-{000..123}.tar) or miniature:COUNT"
MINIATURE_SEED = 3  # llava_writer.py draws the worlds 1 and 2, make_vit.py those of `world`

Seed = int | Sequence[int]


class ImageSource:
    """Images by row number, for any number of processes: it can be pickled and forked.

    `source[row]` gives a PIL image in mode RGB and its label, -1 without a class. Images are never turned by their EXIF
    orientation.

    Attributes:
        classes: their names, in order of the labels.
    """

    classes: list[str]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        from vision_backbones.safe_images import to_rgb

        return to_rgb(self.load(row)), self.label(row)

    def label(self, row: int) -> int:
        """The class of an image, -1 without one."""
        raise NotImplementedError

    def name(self, row: int) -> str:
        """Where an image lies, for people."""
        raise NotImplementedError

    def load(self, row: int) -> Image.Image:
        """Decodes an image, in the mode it is stored in.

        Raises:
            BadImageError: it cannot be read or decoded.
            IndexError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} images")
        try:
            with open_image(self._file(row)) as image:
                image.load()
                return image
        except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
            problem = f"{self.name(row)}: unreadable ({type(error).__name__}: {error})"
            raise BadImageError(f"{problem}; replace or remove it, or skip bad images") from error

    def _file(self, row: int) -> str | io.BytesIO:
        raise NotImplementedError

    def order(self, seed: Seed) -> np.ndarray:
        """Every row once, shuffled: int64 [rows], a pure function of the seed."""
        return np.random.default_rng(seed).permutation(len(self))


class ImageFolder(ImageSource):
    """Image files below a folder; the folder that a file lies in names its class, as in ImageNet and timm.

    Files of the uppermost folder have no class.
    """

    def __init__(self, root: Path, folders: Sequence[Path], names: Sequence[pa.Array]):
        """Takes the folders that hold images, and the names of the images in each."""
        self.folders = folders
        self.classes = sorted({folder.name for folder in folders if folder != root})
        label_of = {name: label for label, name in enumerate(self.classes)}
        self._labels = [-1 if folder == root else label_of[folder.name] for folder in folders]
        self._starts = np.cumsum([0, *map(len, names)])
        self._names = pa.concat_arrays(names)  # millions of str would take ten times the memory, in every worker

    def __len__(self) -> int:
        return len(self._names)

    def label(self, row: int) -> int:  # noqa: D102
        return self._labels[_part(self._starts, row)]

    def name(self, row: int) -> str:  # noqa: D102
        return str(self.folders[_part(self._starts, row)] / os.fsdecode(self._names[row].as_py()))

    _file = name


class TarImages(ImageSource):
    """Images in tar shards, read by their offset; classes are the numbers in `key.cls` and have no other names."""

    def __init__(self, shards: Sequence[Path]):
        """Opens shards; those that are new or changed are indexed first."""
        tables = index_of(shards, SUFFIXES)
        table = pa.concat_tables(tables).combine_chunks()
        if not len(table):
            raise ValueError(
                f"no images in {len(shards)} tar shards ({shards[0]}, ...); expected members such as key.jpg, with one "
                f"dot and one of {', '.join(SUFFIXES)}"
            )
        self.shards = shards
        self._starts = np.cumsum([0, *map(len, tables)])
        self._names = table["name"].chunk(0)
        self._offsets, self._sizes, self._labels = (table[key].to_numpy() for key in ("offset", "size", "label"))
        self.classes = [str(label) for label in range(self._labels.max() + 1)]
        self._handles: dict[int, io.BufferedReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def __len__(self) -> int:
        return len(self._names)

    def label(self, row: int) -> int:  # noqa: D102
        return int(self._labels[row])

    def name(self, row: int) -> str:  # noqa: D102
        return f"{self.shards[_part(self._starts, row)]}: {os.fsdecode(self._names[row].as_py())}"

    def _file(self, row: int) -> io.BytesIO:
        shard = _part(self._starts, row)
        if shard not in self._handles:
            if len(self._handles) == OPEN_SHARDS:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[shard] = self.shards[shard].open("rb")
        # A forked worker shares handles and their position with its parent; pread has a position of its own.
        return io.BytesIO(os.pread(self._handles[shard].fileno(), int(self._sizes[row]), int(self._offsets[row])))

    def order(self, seed: Seed) -> np.ndarray:
        """Every row once: shards shuffled, then the rows of every 16 consecutive shards.

        A file system thus sees a few shards at a time, each read nearly as a whole.
        """
        rng = np.random.default_rng(seed)
        shards = rng.permutation(len(self.shards))
        groups = []
        for start in range(0, len(shards), SHARDS_AT_ONCE):
            parts = [np.arange(*self._starts[shard : shard + 2]) for shard in shards[start : start + SHARDS_AT_ONCE]]
            groups.append(rng.permutation(np.concatenate(parts)))
        return np.concatenate(groups)


class MiniatureImages(ImageSource):
    """Scenes of the miniature world, drawn when asked for; the class is that of the largest thing (the first such)."""

    classes = list(CLASSES)

    def __init__(self, count: int, seed: int = MINIATURE_SEED):
        """Takes the number of scenes and the seed of their world."""
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count} scenes")
        drawn = scene(self.seed, int(row))
        largest = max(drawn.things, key=lambda thing: HALF_EXTENT[thing.size])
        return Image.fromarray(drawn.image), CLASSES.index(largest.name)

    def load(self, row: int) -> Image.Image:  # noqa: D102
        return self[row][0]

    def label(self, row: int) -> int:  # noqa: D102
        return self[row][1]

    def name(self, row: int) -> str:  # noqa: D102
        return f"miniature:{self.count}:{self.seed}, scene {row}"


def _part(starts: np.ndarray, row: int) -> int:
    return int(np.searchsorted(starts, row, side="right")) - 1


def open_images(location: str) -> ImageSource:
    """The images at a place.

    Args:
        location: one of
            a folder of images or, to have classes, of class folders with images, at any depth;
            tar shards in webdataset's convention: a folder of them, `DIR/*.tar`, `DIR/name-{000..123}.tar`, one file;
            `miniature:COUNT` or `miniature:COUNT:SEED`, scenes of the miniature world.

    Raises:
        ValueError: nothing is there, there are no images, or it is unclear which ones are meant.
    """
    if location.startswith("miniature:"):
        numbers = re.fullmatch(r"miniature:([1-9]\d*)(?::(\d+))?", location)
        if not numbers:
            raise ValueError(f"{location!r} names no scenes; expected miniature:COUNT or miniature:COUNT:SEED")
        return MiniatureImages(*(int(number) for number in numbers.groups() if number))
    path = Path(location)
    if path.is_dir():
        return _open_folder(path)
    shards = [path] if path.exists() else matching(location, EXPECTED)
    if unfit := [shard for shard in shards if shard.suffix != ".tar"]:
        raise ValueError(f"{unfit[0]} is neither a folder nor a .tar; expected images as a folder or as tar shards")
    return TarImages(shards)


def _open_folder(path: Path) -> ImageSource:
    shards = sorted(shard for shard in path.glob("*.tar") if shard.is_file())
    splits = [split for split in SPLITS if (path / split).is_dir()]
    if len(splits) > 1:
        raise ValueError(f"{path} holds the splits {', '.join(splits)}; expected one: use {path / splits[0]}")
    folders, names = _list_images(path)
    if folders and shards:
        raise ValueError(
            f"{path} holds tar shards as well as image files, {folders[0] / os.fsdecode(names[0][0].as_py())} for one: "
            f"use {path}/*.tar for the shards, or move them away"
        )
    if not folders and not shards:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        raise ValueError(
            f"no images in {path}; looked for *{', *'.join(SUFFIXES)} in it and below, and for *.tar in it; "
            + (f"it holds {held}" if held else "it is empty")
        )
    return ImageFolder(path, folders, names) if folders else TarImages(shards)


def _list_images(root: Path) -> tuple[list[Path], list[pa.Array]]:
    """The folders that hold images, and the names of those, as bytes: all sorted, hidden ones left out."""
    folders, names, pending = [], [], [root]
    with tqdm(unit=" images", delay=1, desc=f"listing {root}") as bar:
        while pending:
            folder = pending.pop()
            files, below = [], []
            with os.scandir(os.fsencode(folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    if entry.is_dir():
                        below.append(Path(os.fsdecode(entry.path)))
                    elif os.fsdecode(entry.name).lower().endswith(SUFFIXES) and entry.is_file():
                        files.append(entry.name)
            if files:
                folders.append(folder)
                names.append(pa.array(sorted(files), pa.large_binary()))
                bar.update(len(files))
            pending += sorted((path for path in below if not _leads_back(path)), reverse=True)
    return folders, names


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
