"""Annotated conversations about images: the rows of LLaVA json or jsonl and their images, confined to one folder."""

import functools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image, ImageOps

from prismatic.data.llava_index import index_of
from prismatic.data.llava_rows import images_of, row_problems
from vision_backbones.safe_images import leads_out, open_image, to_rgb

READS_PER_RELEASE = 64
OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".JPG", ".JPEG", ".PNG", ".GIF")


class BadImageError(ValueError):
    """An image that is missing or cannot be decoded."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again, with a traceback in front of the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class MissingImageError(BadImageError):
    """An image that is not there."""


class RefusedPathError(ValueError):
    """An image path that leads out of the image root."""


class ConversationDataset:
    """Rows of a LLaVA annotation file and their images.

    The first opening writes an Arrow index (see `llava_index`), which this and later ones map into memory: rows are
    read from it one by one, and the memory a process has of its own stays small.

    Attributes:
        image_counts: how many images each row has, int64 [rows].
        stray_rows: number of rows that say "<image>" as a word.
        word_counts: blank-separated words over all turns, the reference's measure of length, int64 [rows].

    `dataset[i]` gives `{"id": str, "image": str | [str, ...] | None, "conversations": [{"from": str, "value": str},
    ...]}`: one image, several, or none.
    """

    def __init__(self, annotations: Path, image_root: Path, *, exif_rotate: bool = False):
        """Opens a data set, indexing it first where needed.

        Args:
            annotations: one JSON array of rows, or one row a line.
            image_root: folder that image paths are relative to.
            exif_rotate: turn photographs upright by their EXIF orientation; the paper does not.

        Raises:
            ValueError: the file is absent, empty or malformed (the row is named), or `image_root` is no folder.
        """
        self.annotations, self.image_root, self.exif_rotate = Path(annotations), Path(image_root), exif_rotate
        self._index = index_of(self.annotations)
        self._map_index()
        columns = self._rows.data
        self.image_counts = pc.list_value_length(columns.column("image")).to_numpy().astype(np.int64)
        self.stray_rows = pc.sum(pc.greater(columns.column("stray"), 0)).as_py()
        self._wrong = np.flatnonzero(columns.column("wrong").to_numpy())
        self.word_counts = columns.column("words").to_numpy().astype(np.int64)
        self._pages.madvise(mmap.MADV_DONTNEED)
        if self.is_multimodal.any() and not self.image_root.is_dir():
            raise ValueError(
                f"{self.image_root} is not a folder; expected the image root of {self.annotations}, below which "
                f"{images_of(self[int(self.is_multimodal.argmax())])[0]!r} lies"
            )

    @property
    def is_multimodal(self) -> np.ndarray:
        """Which rows have an image, bool [rows]."""
        return self.image_counts > 0

    def check_rows(self) -> None:
        """Raises ValueError if there are rows that cannot be trained on (see `llava_rows`): how many, and the first."""
        if len(self._wrong):
            row = int(self._wrong[0])
            _, problem = next(row_problems(self[row]))
            raise ValueError(
                f"{self.annotations}: {len(self._wrong):,} of {len(self):,} rows cannot be read; row {row} "
                f"(id {self[row]['id']!r}): {problem}. python -m prismatic.data.verify lists them"
            )

    def _map_index(self) -> None:
        with self._index.open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_stream(pa.py_buffer(self._pages)).read_all()
        self._rows = Dataset(table, fingerprint=self._index.stem)
        self._reads = 0

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pages", "_rows", "_reads")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_index()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[int(index)]
        self._reads += 1
        if self._reads % READS_PER_RELEASE == 0:
            # Every read maps 64 kB of the file; unmapped again, they are the page cache's and not this process's.
            self._pages.madvise(mmap.MADV_DONTNEED)
        images = row["image"]
        image = images if len(images) > 1 else images[0] if images else None
        return {"id": row["id"], "image": image, "conversations": row["conversations"]}

    def check_images(self, some: bool = False) -> None:
        """Raises ValueError if an image that rows name is missing (with `some`, all of them), or its path is refused.

        Folders are listed, once each, so that a hundred thousand images take a second.
        """
        paths = pc.unique(pc.list_flatten(self._rows.data.column("image"))).to_pylist()
        self._pages.madvise(mmap.MADV_DONTNEED)
        for path in filter(leads_out, paths):
            _confined(self.image_root, path, f"{self.annotations}: image {path!r}")
        listed = functools.lru_cache(maxsize=None)(lambda folder: _names(self.image_root / folder))
        places = map(os.path.split, map(os.path.normpath, paths))
        missing = [path for path, (folder, name) in zip(paths, places, strict=True) if name not in listed(folder)]
        if missing and (not some or len(missing) == len(paths)):
            first = self.image_root / missing[0]
            raise ValueError(
                f"{len(missing):,} of {len(paths):,} images of {self.annotations} are missing, such as {first}; "
                f"{_remedy(first)}"
            )

    def load_image(self, index: int, number: int = 0) -> Image.Image:
        """Decodes an image of a row, the first if it has several, as RGB, whatever mode it is stored in.

        Raises:
            BadImageError: the image is missing or cannot be decoded.
            RefusedPathError: its path is absolute, holds `..`, or follows a symbolic link out of the image root.
            ValueError: the row has no image.
        """
        row = self[index]
        where = f"{self.annotations}: row {index} (id {row['id']!r})"
        images = images_of(row)
        if not images:
            raise ValueError(f"{where}, image None: a text-only row; ask `is_multimodal` before loading")
        image = images[number]
        where = f"{where}, image {image!r}"
        return _open_rgb(_confined(self.image_root, image, where), where, self.exif_rotate)

    def load_images(self, index: int) -> list[Image.Image]:
        """Decodes all images of a row, none of a text-only one; raises what `load_image` does."""
        return [self.load_image(index, number) for number in range(self.image_counts[index])]


def _names(folder: Path) -> set[str]:
    """Of the files in a folder: no folders, and no links that lead nowhere."""
    try:
        return {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        return set()


def _confined(root: Path, relative: str, where: str) -> Path:
    if leads_out(relative):
        raise RefusedPathError(
            f"{where}: refused; expected a path relative to the image root {root}, without '..': correct the row"
        )
    path = Path(os.path.realpath(root / relative))
    if not path.is_relative_to(os.path.realpath(root)):
        raise RefusedPathError(
            f"{where}: refused, a symbolic link leads out of the image root {root} to {path}: "
            "copy or mount the images below the root"
        )
    return path


def _open_rgb(path: Path, where: str, exif_rotate: bool) -> Image.Image:
    try:
        if not path.is_file():  # also keeps a named pipe from blocking for ever
            raise MissingImageError(f"{where}: missing, no file {path}; {_remedy(path)}")
        with open_image(path) as image:
            image.load()
            if exif_rotate:
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)
    except BadImageError:
        raise
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise BadImageError(
            f"{where}: unreadable ({type(error).__name__}: {error}); replace {path}, or skip bad images"
        ) from error


def _remedy(path: Path) -> str:
    for suffix in OTHER_SUFFIXES:
        if path.with_suffix(suffix).is_file():
            return f"{path.with_suffix(suffix).name} lies there: convert it or correct the row"
    return "complete the download, correct the row, or skip bad images"


def open_data(data) -> tuple[ConversationDataset, ConversationDataset | None]:
    """The training rows and the held-out rows (None without any) that a `DataConfig` names.

    "miniature:N" as annotations draws N scenes of the miniature world, which has held-out rows of its own; the config
    is filled in with the files that were read.

    Raises:
        ValueError: a file is absent or malformed, or names rows that cannot be trained on or images that are missing.
    """
    if data.annotations.startswith("miniature:"):
        from prismatic.miniature.llava_writer import miniature_llava

        folder = miniature_llava(int(data.annotations.removeprefix("miniature:")))
        data.annotations, data.held_out = str(folder / "train.json"), data.held_out or str(folder / "held_out.json")

    def opened(annotations: str) -> ConversationDataset:
        root = data.image_root or Path(annotations).parent
        return ConversationDataset(Path(annotations), Path(root), exif_rotate=data.exif_rotation)

    source, held_out = opened(data.annotations), opened(data.held_out) if data.held_out else None
    for rows in (source, held_out) if held_out else (source,):
        rows.check_rows()
        rows.check_images(data.on_bad_image == "skip" and rows is source)
    return source, held_out
