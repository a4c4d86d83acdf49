"""Conversations that are read as they come, of data sets that are too large to be downloaded or indexed first."""

import functools
import hashlib
import inspect
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset
from PIL import Image

from prismatic.data.containers.common import files_of, is_path
from prismatic.data.containers.tables import load_hub
from prismatic.data.conversation_source import ConversationSource, open_rgb
from prismatic.data.image_stores import DataError, FolderImages
from prismatic.data.llava_index import checked
from prismatic.data.llava_rows import row_problems
from prismatic.data.mixture import parse_part
from prismatic.data.row_layouts import as_llava, image_column, layout_of
from prismatic.data.sources import kind_of

FIRST = 64  # rows that are read before training begins
BUFFER = 1000  # rows, with their encoded images, among which the next ones are drawn
# Versions of `datasets` that read several files at once do so in threads, and wait five seconds for them at every end.
ONE_FILE = {
    name: 1 for name in inspect.signature(IterableDataset.shuffle).parameters if name == "max_buffer_input_shards"
}


class StreamError(DataError):
    """A stream that cannot be read on, or a row of it that cannot be trained on."""


class StreamedRow(NamedTuple):
    """A row as `ConversationSource` has it, and its images as they are stored: None for a file below the root."""

    row: dict[str, Any]
    names: list[str]
    images: list[bytes | None]
    where: str
    words: int
    stray: int


class StreamedSource(ConversationSource):
    """A stream of rows. As numbered rows it has the first ones, by which it is checked before training and recognised.

    Training reads `shuffled`, `read` and `decode`.
    """

    def __init__(self, location: str, stream: IterableDataset, layout: str, root: Path, *, exif_rotate: bool = False):
        """Reads the first rows.

        Args:
            location: where the rows are, for people.
            stream: the rows in their own order.
            layout: a name among `LAYOUTS`, or "auto".
            root: folder of images that are only paths.
            exif_rotate: turn photographs upright by their EXIF orientation; the paper does not.

        Raises:
            ValueError: the stream cannot be read, has no rows or no known columns, or a row is malformed.
        """
        self.location, self.files, self.exif_rotate = location, [], exif_rotate
        self.images = FolderImages(root)
        self._stream = stream.decode(False) if stream.features else stream  # images stay bytes
        first = list(self._rows(self._stream.take(FIRST)))
        if not first:
            raise ValueError(f"{location} holds no rows; expected at least one conversation")
        self._features = self._stream.features or Dataset.from_list(first).features
        self._layout = layout_of(self._features, layout, location)
        self._column = image_column(self._features, location)
        if self._column:
            is_path(self._features.arrow_schema.field(self._column).type, self._column, location)
        self._first = [self.read(row, number) for number, row in enumerate(first)]
        self.image_counts = np.array([len(row.names) for row in self._first], dtype=np.int64)
        self.word_counts = np.array([row.words for row in self._first], dtype=np.int64)
        self.stray_rows = sum(row.stray > 0 for row in self._first)

    def _rows(self, stream: IterableDataset) -> Iterator[dict[str, Any]]:
        try:
            # Not `for row in stream`: in a DataLoader's worker that shuffles otherwise than in the main process.
            for batch in stream.iter(1):
                yield {name: values[0] for name, values in batch.items()}
        except Exception as error:  # what the network, the hub's client, Arrow and datasets raise
            reason = " ".join(str(error).split())[:200]
            raise StreamError(
                f"{self.location} cannot be read on ({type(error).__name__}: {reason}); where it is the network, start "
                "the same command again, which resumes"
            ) from error

    def shuffled(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows as they are stored, pass after pass without an end, every pass in an order of its own."""
        for number in itertools.count():
            yield from self._rows(self._stream.shuffle(seed=seed + number, buffer_size=BUFFER, **ONE_FILE))

    def read(self, row: dict[str, Any], number: int) -> StreamedRow:
        """A row as training takes it; no image is decoded.

        Args:
            row: as it is stored.
            number: its place in the stream, which names it where nothing else does.

        Raises:
            StreamError: it is malformed, or breaks a rule of `llava_rows`.
        """
        identity = number if row.get("id") is None else row["id"]
        where = f"{self.location}: row {number} of the stream (id {str(identity)!r})"
        try:
            llava = as_llava(row, self._layout, str(number), where)
            name, paths, turns, words, stray, _ = checked(llava, where)
        except ValueError as error:
            raise StreamError(str(error)) from error
        image = paths if len(paths) > 1 else paths[0] if paths else None
        read = {"id": name, "image": image, "conversations": turns}
        if problem := next(row_problems(read), None):
            raise StreamError(f"{where}: {problem[1]}: correct the row")
        stored = row[self._column] if self._column else None
        stored = stored if isinstance(stored, list) else [stored]
        images = [image.get("bytes") if isinstance(image, dict) else image for image in stored]
        images = [image if isinstance(image, bytes) else None for image in images]
        return StreamedRow(read, paths, images if any(images) else [None] * len(paths), where, words, stray)

    def decode(self, row: StreamedRow) -> list[Image.Image]:
        """Decodes all images of a row; raises what `load_image` does."""
        return [self._decode(row, number) for number in range(len(row.names))]

    def _decode(self, row: StreamedRow, number: int) -> Image.Image:
        where, data = f"{row.where}, image {row.names[number]!r}", row.images[number]
        file = self.images.open(0, number, row.names[number], where) if data is None else io.BytesIO(data)
        return open_rgb(file, where, self.exif_rotate)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._first[index].row

    def where(self, index: int) -> str:  # noqa: D102
        return self._first[index].where

    def load_image(self, index: int, number: int = 0) -> Image.Image:  # noqa: D102
        return self._decode(self._first[index], number)

    @functools.cached_property
    def digest(self) -> str:  # noqa: D102
        found = [self.location, self._layout, str(self._features), [row.row for row in self._first]]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def check_rows(self) -> None:
        """Nothing is left to check: a row that cannot be trained on is an error where it is read."""

    def check_images(self, some: bool = False) -> None:
        """Raises ValueError if an image file of the first rows is missing (with `some`, all of them), or refused."""
        pairs = [pair for row in self._first for pair in zip(row.names, row.images, strict=True)]
        paths = sorted({name for name, data in pairs if data is None})
        if paths and not self.images.root.is_dir():
            raise ValueError(
                f"{self.images.root} is not a folder; expected the image root of {self.location}, below which "
                f"{paths[0]!r} lies"
            )
        self.images.check(paths, self.location, some)


def open_stream(
    text: str, layout: str = "auto", image_root: str | Path | None = None, *, exif_rotate: bool = False
) -> StreamedSource:
    """The source that `--data.sources` names, to be read as it comes.

    Args:
        text: one `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT`, or parquet files as `open_source` takes them.
        layout: see `open_source`.
        image_root: see `open_source`.
        exif_rotate: see `open_source`.

    Raises:
        ValueError: an amount of it is asked for, it is of another kind, or `StreamedSource` raises it.
    """
    location, *amount = parse_part(text)
    if any(amount):
        raise ValueError(f"--data.streaming reads all of a source: write {location} for {text}, and set --max_steps")
    kind = kind_of(location)
    if kind == "hf":
        return StreamedSource(
            location, load_hub(location, streaming=True), layout, Path(image_root or "."), exif_rotate=exif_rotate
        )
    if kind not in ("parquet", None):
        raise ValueError(
            f"--data.streaming reads hf:NAME:SPLIT or parquet: {location} is {kind}, which is read by index where it "
            "lies: leave out --data.streaming"
        )
    files = files_of(location, "parquet")
    try:
        stream = load_dataset("parquet", data_files=[str(file) for file in files], split="train", streaming=True)
    except Exception as error:  # datasets raises its own, Arrow's, OSError, ValueError, ...
        raise ValueError(
            f"{location} cannot be read ({' '.join(str(error).split())[:200]}): download it again"
        ) from error
    root = Path(image_root or (location if Path(location).is_dir() else files[0].parent))
    return StreamedSource(location, stream, layout, root, exif_rotate=exif_rotate)
