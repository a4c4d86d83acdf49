"""Parquet files with images in columns, as `datasets` writes them; single images are read by `prismatic.data`."""

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.data.readers import shown
from eval.data.tables import Place, decoded
from prismatic.data.image_stores import Files, ParquetImages

ROWS = 1000  # that are read at once


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
        for column in columns:
            _check_images(column, self.schema.field(column).type)
        self.images: dict[str, ParquetImages] = {}
        self.lengths: dict[str, np.ndarray] = {}  # images of each row
        self.lock = threading.Lock()

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Table`. Of images only their number is read; other columns of images are left out."""
        texts = [field.name for field in self.schema if field.name not in self.columns and not _has_bytes(field.type)]
        for column in self.columns:
            self._open(column)
        number = 0
        try:
            with pq.ParquetFile(self.path) as parquet:
                for batch in parquet.iter_batches(ROWS, columns=texts, use_threads=False):
                    for row in batch.to_pylist():
                        yield row | {column: self._places(number, column) for column in self.columns}
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
        leaves = self.leaves[column]
        content = next((leaf for leaf in leaves if leaf.endswith(".bytes")), leaves[0])
        least = next((leaf for leaf in leaves if leaf.endswith(".path")), content)
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
