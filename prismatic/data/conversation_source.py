"""What training reads: numbered conversations about images, whatever files they lie in."""

import functools
import hashlib
import io
import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image, ImageOps

from prismatic.data.image_stores import BadImageError, FolderImages, TarImages
from prismatic.data.llava_rows import images_of, row_problems
from vision_backbones.safe_images import open_image, to_rgb

READS_PER_RELEASE = 64


class ConversationSource(ABC):
    """Conversations and their images by row number, for any number of processes: it can be pickled and forked.

    `source[i]` gives `{"id": str, "image": str | [str, ...] | None, "conversations": [{"from": str, "value": str},
    ...]}`: the name of one image, of several, or none.

    Attributes:
        location: where the rows are, for people.
        files: all files that they are read from, but for images that are files of their own.
        image_counts: how many images each row has, int64 [rows].
        stray_rows: number of rows that say "<image>" as a word.
        word_counts: blank-separated words over all turns, the reference's measure of length, int64 [rows].
    """

    location: object
    files: list[Path]
    image_counts: np.ndarray
    stray_rows: int
    word_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.image_counts)

    @abstractmethod
    def __getitem__(self, index: int) -> dict[str, Any]:
        """A row; see the class."""

    @property
    def is_multimodal(self) -> np.ndarray:
        """Which rows have an image, bool [rows]."""
        return self.image_counts > 0

    @abstractmethod
    def where(self, index: int) -> str:
        """Where a row is, for people."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what the rows say and which images they name."""

    @property
    def parts(self) -> "list[ConversationSource]":
        """The sources that make up a mixture; of any other, itself."""
        return [self]

    @abstractmethod
    def check_rows(self) -> None:
        """Raises ValueError if there are rows that cannot be trained on (see `llava_rows`): how many, and the first."""

    @abstractmethod
    def check_images(self, some: bool = False) -> None:
        """Raises ValueError if an image that rows name is missing (with `some`, all of them), or has a refused path."""

    @abstractmethod
    def load_image(self, index: int, number: int = 0) -> Image.Image:
        """Decodes an image of a row, the first if it has several, as RGB, whatever mode it is stored in.

        Raises:
            BadImageError: the image is missing or cannot be decoded.
            RefusedPathError: its path is absolute, holds `..`, or follows a symbolic link out of the image root.
            ValueError: the row has no image.
        """

    def load_images(self, index: int) -> list[Image.Image]:
        """Decodes all images of a row, none of a text-only one; raises what `load_image` does."""
        return [self.load_image(index, number) for number in range(self.image_counts[index])]


class IndexedSource(ConversationSource):
    """Rows of an Arrow index (see `llava_index`), which is mapped into memory, and their images.

    Rows are read from the index one by one, and the memory a process has of its own stays small.
    """

    def __init__(self, location: object, files: Sequence[Path], index: Path, *, exif_rotate: bool = False):
        """Opens an index; `images`, where the images are, is set afterwards, or by `read_images_below`.

        Args:
            location: where the rows are, for people.
            files: that the index was made from.
            index: the Arrow file.
            exif_rotate: turn photographs upright by their EXIF orientation; the paper does not.
        """
        self.location, self.files, self.exif_rotate = location, list(files), exif_rotate
        self.images: FolderImages | TarImages
        self._index = index
        self._map_index()
        columns = self._rows.data
        self.image_counts = pc.list_value_length(columns.column("image")).to_numpy().astype(np.int64)
        self.stray_rows = pc.sum(pc.greater(columns.column("stray"), 0)).as_py()
        self._wrong = np.flatnonzero(columns.column("wrong").to_numpy())
        self.word_counts = columns.column("words").to_numpy().astype(np.int64)
        self._pages.madvise(mmap.MADV_DONTNEED)

    def read_images_below(self, root: Path) -> None:
        """Takes images for files below a folder. Raises ValueError if there are some, and no such folder."""
        self.images = FolderImages(root)
        if self.is_multimodal.any() and not root.is_dir():
            raise ValueError(
                f"{root} is not a folder; expected the image root of {self.location}, below which "
                f"{images_of(self[int(self.is_multimodal.argmax())])[0]!r} lies"
            )

    def check_rows(self) -> None:  # noqa: D102
        if len(self._wrong):
            row = int(self._wrong[0])
            _, problem = next(row_problems(self[row]))
            raise ValueError(
                f"{self.location}: {len(self._wrong):,} of {len(self):,} rows cannot be read; row {row} "
                f"(id {self[row]['id']!r}): {problem}. python -m prismatic.data.verify lists them"
            )

    def _map_index(self) -> None:
        with self._index.open("rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = pa.ipc.open_stream(pa.py_buffer(self._pages)).read_all()
        self._rows, self._names = Dataset(table, fingerprint=self._index.stem), table.column("image")
        self._reads = 0

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_pages", "_rows", "_names", "_reads")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_index()

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[int(index)]
        self._release()
        images = row["image"]
        image = images if len(images) > 1 else images[0] if images else None
        return {"id": row["id"], "image": image, "conversations": row["conversations"]}

    def _release(self) -> None:
        self._reads += 1
        if self._reads % READS_PER_RELEASE == 0:
            # Every read maps 64 kB of the file; unmapped again, they are the page cache's and not this process's.
            self._pages.madvise(mmap.MADV_DONTNEED)

    @functools.cached_property
    def digest(self) -> str:  # noqa: D102
        found = hashlib.sha256()
        for batch in self._rows.data.table.to_batches():
            for name in ("id", "image", "conversations"):
                for buffer in filter(None, batch.column(name).buffers()):
                    found.update(buffer)
        self._pages.madvise(mmap.MADV_DONTNEED)
        return found.hexdigest()

    def where(self, index: int) -> str:  # noqa: D102
        return f"{self.location}: row {index} (id {self[index]['id']!r})"

    def check_images(self, some: bool = False) -> None:  # noqa: D102
        paths = pc.unique(pc.list_flatten(self._rows.data.column("image"))).to_pylist()
        self._pages.madvise(mmap.MADV_DONTNEED)
        self.images.check(paths, self.location, some)

    def load_image(self, index: int, number: int = 0) -> Image.Image:  # noqa: D102
        index = int(index)
        images = self._names[index].as_py()
        self._release()
        if not images:
            raise ValueError(f"{self.where(index)}, image None: a text-only row; ask `is_multimodal` before loading")
        where = _Place(self, index, images[number])
        return open_rgb(self.images.open(index, number, images[number], where), where, self.exif_rotate)


class _Place(NamedTuple):
    """An image of a row for messages, which are seldom written: reading the row takes a tenth of decoding its image."""

    source: ConversationSource
    row: int
    image: str

    def __str__(self) -> str:
        return f"{self.source.where(self.row)}, image {self.image!r}"


def open_rgb(file: Path | io.BytesIO, where: object, exif_rotate: bool) -> Image.Image:
    """An image as RGB, whatever mode it is stored in. Raises BadImageError, which begins with `where`."""
    try:
        with open_image(file) as image:
            image.load()
            if exif_rotate:
                image = ImageOps.exif_transpose(image)
            return to_rgb(image)
    except Exception as error:  # damaged files raise nearly anything: OSError, SyntaxError, struct.error, ...
        it = file if isinstance(file, Path) else "it"
        raise BadImageError(
            f"{where}: unreadable ({type(error).__name__}: {error}); replace {it}, or skip bad images"
        ) from error
