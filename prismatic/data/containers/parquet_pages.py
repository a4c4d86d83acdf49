"""Where each value of an uncompressed parquet column lies in its file, so that one can be read without its neighbours.

Libraries read whole groups of rows, of a hundred megabytes where `datasets` wrote images. The format is specified at
https://parquet.apache.org/docs/file-format: pages, each a header in Thrift's compact protocol, the levels that say
which values are absent, and the values one after the other.
"""

import os
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

HEADER_BYTES = 16 << 10
DATA_PAGE, DATA_PAGE_V2 = 0, 3  # page types; 5 and 8 are the fields of a header that describe them
PLAIN = 0


class Chunk(NamedTuple):
    """A column of one group of rows: where its pages begin, how many values they hold, how deep these are nested."""

    offset: int
    values: int
    max_definition: int
    max_repetition: int


def plain_chunks(metadata: pq.FileMetaData, column: str) -> list[Chunk | None]:
    """The chunks of a column of bytes, such as `images.list.element.bytes`, in every group of rows.

    None for one that is not stored plainly (compressed, from a dictionary), which a library has to read.
    """
    number = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == column)
    schema, found = metadata.schema.column(number), []
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(number)
        plain = chunk.compression == "UNCOMPRESSED" and not set(chunk.encodings) - {"PLAIN", "RLE"}
        levels = schema.max_definition_level, schema.max_repetition_level
        found.append(Chunk(chunk.data_page_offset, chunk.num_values, *levels) if plain else None)
    return found


def extents(descriptor: int, chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """Offset and size in the file of every value of a chunk: two arrays, int64 [values]; size -1 of an absent value.

    Raises:
        ValueError: the file is damaged.
    """
    offsets, sizes = np.zeros(chunk.values, np.int64), np.full(chunk.values, -1, np.int64)
    at, done = chunk.offset, 0
    while done < chunk.values:
        head = os.pread(descriptor, HEADER_BYTES, at)
        header, length = _struct(head, 0)
        data = header.get(5) or header.get(8)
        if header[1] not in (DATA_PAGE, DATA_PAGE_V2) or data[2 if header[1] == DATA_PAGE else 4] != PLAIN:
            raise ValueError(f"page at byte {at}")
        at += length
        count, body, end = data[1], at, at + header[3]
        if header[1] == DATA_PAGE:
            if chunk.max_repetition:
                body += 4 + int.from_bytes(os.pread(descriptor, 4, body), "little")
            size = int.from_bytes(os.pread(descriptor, 4, body), "little") if chunk.max_definition else 0
            body += 4 * bool(chunk.max_definition)
        else:
            body, size = body + data[6], data[5]
        present = _present(os.pread(descriptor, size, body), chunk.max_definition, count)
        body += size
        for value in np.flatnonzero(present).tolist():
            size = int.from_bytes(os.pread(descriptor, 4, body), "little")
            offsets[done + value], sizes[done + value] = body + 4, size
            body += 4 + size
        if body != end:
            raise ValueError(f"page at byte {at}")
        at, done = end, done + count
    return offsets, sizes


def _present(data: bytes, highest: int, count: int) -> np.ndarray:
    """Which values have the highest definition level, bool [count]: runs of one level, and levels packed in bits."""
    if not highest:
        return np.ones(count, bool)
    width, at, parts = highest.bit_length(), 0, []
    while sum(map(len, parts)) < count:
        head, at = _number(data, at)
        if head & 1:
            size = (head >> 1) * width
            bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at), bitorder="little").reshape(-1, width)
            parts.append(bits @ (1 << np.arange(width)) == highest)
        else:
            size = -(-width // 8)
            parts.append(np.full(head >> 1, int.from_bytes(data[at : at + size], "little") == highest))
        at += size
    return np.concatenate(parts)[:count]


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _number(data, at)
    return (value >> 1) ^ -(value & 1), at


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct by their number, and where it ends."""
    fields, field = {}, 0
    while head := data[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _signed(data, at)
        fields[field], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:  # true, false
            return kind == 1, at
        case 3:  # byte
            return data[at], at + 1
        case 4 | 5 | 6:  # integers
            return _signed(data, at)
        case 7:  # double
            return None, at + 8
        case 8:  # bytes
            size, at = _number(data, at)
            return data[at : at + size], at + size
        case 12:
            return _struct(data, at)
    raise ValueError(f"kind {kind} in the header of a page")
