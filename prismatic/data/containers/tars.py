"""Conversations in tar shards in webdataset's convention: `key.json` or `key.txt`, and `key.jpg` or `key.0.jpg`, ..."""

import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prismatic.data.containers.common import files_of, indexed
from prismatic.data.conversation_source import IndexedSource
from prismatic.data.image_stores import Files, TarImages
from prismatic.data.row_layouts import IMAGES, layout_of
from prismatic.data.tar_index import index_of

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MEMBERS_TRIED = 100
PICTURE_ENDS = tuple(suffix.encode() for suffix in PICTURES)
SUFFIXES = (*PICTURES, *(f".#{suffix}" for suffix in PICTURES), ".json", ".txt")


def open_tars(location: str, layout: str, image_root, exif_rotate: bool) -> IndexedSource:
    """The rows of tar shards; see `open_source`."""
    shards = files_of(location, "tar")
    tables = index_of(shards, SUFFIXES)
    suffix = next((end for end in (b".json", b".txt") if any(_ending(table, end) for table in tables)), None)
    if suffix is None:
        raise ValueError(f"{location} holds neither key.json nor key.txt; expected one of them beside every key.jpg")
    first = next(_rows(shards[:1], tables[:1], suffix), {})
    name = layout_of(first, layout, location)
    source = indexed(location, name, shards, lambda advance: _rows(shards, tables, suffix, advance), exif_rotate)
    source.images = TarImages(Files(shards), SUFFIXES, [_ending(table, suffix) for table in tables])
    return source


def holds_texts(location: str) -> bool:
    """Whether there are conversations or captions in tar shards, by the first members of the first one."""
    shard = files_of(location, "tar")[0]
    try:
        with tarfile.open(shard, "r:") as tar:
            return any(member.name.endswith((".json", ".txt")) for member in itertools.islice(tar, MEMBERS_TRIED))
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: damaged or not an uncompressed tar ({error}): download or pack it again") from error


def _ending(table: pa.Table, suffix: bytes) -> int:
    return pc.sum(pc.ends_with(table["name"], pattern=suffix, ignore_case=True)).as_py() or 0


def _rows(
    shards: Sequence[Path], tables: Sequence[pa.Table], suffix: bytes, advance: Callable[[int], Any] = lambda size: None
) -> Iterator[dict[str, Any]]:
    """Rows in the order of their texts: what these hold, `images` with names of members, and the key as id."""
    for shard, table in zip(shards, tables, strict=True):
        images: dict[bytes, list[tuple[int, str]]] = {}
        texts: dict[bytes, int] = {}
        for member, name in enumerate(table["name"].to_pylist()):
            folder, slash, file = name.rpartition(b"/")
            stem, _, end = file.partition(b".")
            key, end = folder + slash + stem, b"." + end.lower()
            if end == suffix:
                if key in texts:
                    raise ValueError(f"{shard} holds {os.fsdecode(name)} twice: pack it again")
                texts[key] = member
            elif end.endswith(PICTURE_ENDS):
                number = end.split(b".")[1]
                images.setdefault(key, []).append((int(number) if number.isdigit() else 0, os.fsdecode(name)))
        if alone := next((key for key in images if key not in texts), None):
            raise ValueError(
                f"{shard} holds {images[alone][0][1]}, but no {os.fsdecode(alone + suffix)}: pack it again"
            )
        offsets, sizes = table["offset"].to_pylist(), table["size"].to_pylist()
        with shard.open("rb") as file:
            for key, member in texts.items():
                file.seek(offsets[member])
                row = _parsed(file.read(sizes[member]), suffix, f"{shard}: {os.fsdecode(key + suffix)}")
                row = {name: value for name, value in row.items() if name not in IMAGES}
                row["images"] = [name for _, name in sorted(images.get(key, []))]
                if row.get("id") is None:
                    row["id"] = os.fsdecode(key)
                yield row
        advance(shard.stat().st_size)


def _parsed(data: bytes, suffix: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(data) if suffix == b".json" else {"text": data.decode()}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no UTF-8 {suffix.decode()[1:]} ({error}): correct it") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} holds {ascii(row)[:80]}; expected an object")
    return row
