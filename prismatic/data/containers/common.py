"""What all containers of conversations share: their files, their columns of images, the index of their rows."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from prismatic.data import llava_index
from prismatic.data.conversation_source import IndexedSource
from prismatic.data.image_stores import stamp
from prismatic.data.row_layouts import as_llava
from prismatic.data.tar_index import matching

EXPECTED = (
    "LLaVA json or jsonl, parquet files (a folder, DIR/*.parquet, one file), a folder of datasets.save_to_disk, tar "
    "shards (DIR/*.tar, DIR/name-{000..123}.tar), hf:NAME:SPLIT or miniature:COUNT"
)
SPLITS = {"train", "val", "validation", "test"}
BATCH = 1000  # rows that are read at once


def indexed(location: str, layout: str, files: Sequence[Path], rows, exif_rotate: bool) -> IndexedSource:
    """The source whose rows `rows` gives, as `llava_index.index_rows` has it, but in their own layout."""
    stamps = [(str(file.resolve()), *stamp(file)) for file in files]

    def converted(advance: Callable[[int], Any]) -> Iterator[Any]:
        for number, row in enumerate(rows(advance)):
            yield as_llava(row, layout, str(number), f"{location}: row {number}") if isinstance(row, dict) else row

    identity = json.dumps([llava_index.INDEX_FORMAT, layout, stamps])
    index = llava_index.index_rows(location, identity, converted, sum(size for _, size, _ in stamps))
    return IndexedSource(location, files, index, exif_rotate=exif_rotate)


def files_of(location: str, suffix: str) -> list[Path]:
    """The files at a place: one file, those in a folder, or those of a pattern with braces or wildcards.

    Raises:
        ValueError: there are none, some are of another kind, or they are of several splits.
    """
    path = Path(location)
    files = [path] if path.is_file() else matching(f"{location}/*.{suffix}" if path.is_dir() else location, EXPECTED)
    if unfit := [file for file in files if file.suffix != f".{suffix}" or not file.is_file()]:
        raise ValueError(f"{unfit[0]} is no .{suffix} file; expected {EXPECTED}")
    kinds = {file.name.split("-")[0] for file in files} & SPLITS
    if len(kinds) > 1:
        raise ValueError(
            f"{location} holds the splits {', '.join(sorted(kinds))}; expected one, {path}/train-*.{suffix}"
        )
    return files


def is_path(kind: pa.DataType, column: str, location: str) -> bool:
    """Whether a column of images holds paths alone, and no bytes. Raises ValueError if it holds neither."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner):
        return True
    if pa.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
        return False
    if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
        return False
    raise ValueError(
        f"{location} has the column {column} of type {kind}; expected images as datasets.Image, bytes or paths, one or "
        "a list of them: cast the column"
    )
