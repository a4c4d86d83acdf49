"""Parquet files with images in columns, as `datasets` writes them; single images are read by `prismatic.data`.

Equal images are the first one of them, and those without bytes are none.
"""

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.data.readers import shown
from eval.data.tables import Place, decoded
from prismatic.data.containers.parquet_pages import extents, plain_chunks
from prismatic.data.image_stores import Files, ParquetImages

ROWS = 1000  # that are read at once
IMAGES = 16  # that are


class ParquetTable:
    """A parquet file, see `eval.data.tables.Table`."""

    def __init__(self, path: Path, columns: Sequence[str]):
        """Reads the footer.

        Raises:
            ValueError: The file is damaged, or lacks a column, or one holds no images.
        """
        self.path, self.columns = path, columns
        try:
            self.footer = pq.read_metadata(path)
            self.schema = self.footer.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error) from error
        if lacking := [column for column in columns if column not in self.schema.names]:
            raise ValueError(f"it lacks {', '.join(lacking)}; its columns are {shown(', '.join(self.schema.names))}")
        leaves = [self.footer.schema.column(number).path for number in range(self.footer.num_columns)]
        self.leaves = {column: [leaf for leaf in leaves if leaf.split(".")[0] == column] for column in columns}
        self.contents = {
            column: next((leaf for leaf in its if leaf.endswith(".bytes")), its[0])
            for column, its in self.leaves.items()
        }
        for column in columns:
            _check_images(column, self.schema.field(column).type)
        self.images: dict[str, ParquetImages] = {}
        self.lengths: dict[str, np.ndarray] = {}  # images of each row
        self.lock = threading.Lock()

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Table`. Of images only those that may be equal are read; other columns of images are left out."""
        texts = [field.name for field in self.schema if field.name not in self.columns and not _has_bytes(field.type)]
        for column in self.columns:
            self._open(column)
        firsts, number = self._firsts(), 0
        try:
            with pq.ParquetFile(self.path) as parquet:
                for batch in parquet.iter_batches(ROWS, columns=texts, use_threads=False):
                    for row in batch.to_pylist():
                        places = {column: self._places(number, column) for column in self.columns}
                        yield row | {c: [firsts[at] for at in its if at in firsts] for c, its in places.items()}
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error) from error

    def read(self, place: Place) -> bytes:
        """See `Table`."""
        row, column, number = place
        with self.lock:  # what reads the columns keeps parts of them
            self._open(column)
            if not 0 <= row < self.footer.num_rows or place not in self._places(row, column):
                raise ValueError(f"{self.path} has no image in row {row}, column {column}, number {number}")
            found = self.images[column].open(row, number or 0, "", f"{self.path}: row {row}")
        if not isinstance(found, io.BytesIO):
            raise ValueError(f"{self.path} has no bytes in row {row}, column {column}")
        content = bytes(found.getbuffer())
        return decoded(content) if _is_text(_inner(self.schema.field(column).type)) else content

    def _places(self, row: int, column: str) -> list[Place]:
        if not _is_list(self.schema.field(column).type):
            return [(row, column, None)] * int(self.lengths[column][row])
        return [(row, column, number) for number in range(int(self.lengths[column][row]))]

    def _open(self, column: str) -> None:
        """Finds how many images each row has, by the least part of the column that says so."""
        if column in self.images:
            return
        content = self.contents[column]
        least = next((leaf for leaf in self.leaves[column] if leaf.endswith(".path")), content)
        lengths: list[int] = []
        try:
            with pq.ParquetFile(self.path) as parquet:
                for batch in parquet.iter_batches(ROWS, columns=[least], use_threads=False):
                    values = batch.column(0)
                    listed = _is_list(values.type)
                    counted = pc.list_value_length(values).fill_null(0) if listed else values.is_valid()
                    lengths += map(int, counted.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise _damaged(error) from error
        self.lengths[column] = np.array(lengths, np.int64)
        counts = self.lengths[column] if _is_list(self.schema.field(column).type) else np.ones(len(lengths), np.int64)
        self.images[column] = ParquetImages(Files([self.path]), [self.footer], content, counts, self.path.parent)

    def _firsts(self) -> dict[Place, Place]:
        """For every image that has bytes the first with the same ones. Of equal sizes only those are compared."""
        stored: dict[Place, tuple[int, int | bytes]] = {}
        try:
            with self.path.open("rb") as file:
                for column in self.columns:
                    slots = (self._places(row, column) or [None] for row in range(self.footer.num_rows))
                    found = self._stored(column, file.fileno())
                    for place, one in zip((place for its in slots for place in its), found, strict=True):
                        if place is not None and one[0] > 0:
                            stored[place] = one
                sizes = Counter(size for size, _ in stored.values())
                firsts: dict[Place, Place] = {}
                seen: dict[tuple, Place] = {}
                for place, (size, where) in stored.items():
                    if isinstance(where, int) and sizes[size] > 1:
                        where = hashlib.blake2b(os.pread(file.fileno(), size, where)).digest()
                    firsts[place] = seen.setdefault((size, where), place)
        except (pa.ArrowException, OSError, LookupError, ValueError) as error:
            raise _damaged(error) from error
        return firsts

    def _stored(self, column: str, descriptor: int) -> Iterator[tuple[int, int | bytes]]:
        """Size of every image, and where in the file it is, or its digest where the column has to be read for it.

        An absent or empty list is one absent image; the size of these is not positive.
        """
        chunks = plain_chunks(self.footer, self.contents[column])
        if all(chunks):
            for chunk in chunks:
                offsets, sizes = extents(descriptor, chunk)
                yield from zip(sizes.tolist(), offsets.tolist(), strict=True)
            return
        with pq.ParquetFile(self.path) as parquet:
            for batch in parquet.iter_batches(IMAGES, columns=[self.contents[column]], use_threads=False):
                for row in batch.column(0):
                    listed = isinstance(row, pa.ListScalar | pa.LargeListScalar)
                    for image in (row.values or [None]) if listed else [row]:
                        found = image["bytes"] if isinstance(image, pa.StructScalar) and image.is_valid else image
                        content = found.as_buffer() if found is not None and found.is_valid else None
                        yield (-1, b"") if content is None else (content.size, hashlib.blake2b(content).digest())


def _check_images(column: str, kind: pa.DataType) -> None:
    inner = _inner(kind)
    if not (_is_text(inner) or _has_bytes(inner)):
        raise ValueError(f"its column {column} is of type {kind}, expected images as bytes or base64")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _inner(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if _is_list(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _has_bytes(kind: pa.DataType) -> bool:
    inner = _inner(kind)
    if pa.types.is_struct(inner):
        return inner.get_field_index("bytes") >= 0
    return pa.types.is_binary(inner) or pa.types.is_large_binary(inner)


def _damaged(error: Exception) -> ValueError:
    return ValueError(f"it is cut off, damaged or no parquet ({str(error).splitlines()[0]})")
