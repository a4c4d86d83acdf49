"""LLaVA annotations, json or jsonl, checked and rewritten as an Arrow file that can be mapped into memory."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value
from datasets import config as datasets_config
from filelock import FileLock
from tqdm import tqdm

from prismatic.data.llava_rows import images_of, row_problems, stray_marks
from vision_backbones.names import suggest

INDEX_FORMAT = 2  # raise it whenever the content of an index changes
CHUNK_BYTES = 4 << 20
LONGEST_ROW = 64 << 20  # characters; a longer "row" is broken JSON whose end is never found
ROWS_PER_RECORD_BATCH = 1000

FEATURES = Features(
    {
        "id": Value("string"),
        "image": List(Value("string")),
        "conversations": List({"from": Value("string"), "value": Value("string")}),
        "words": Value("int32"),
        "stray": Value("int32"),
        "wrong": Value("bool"),
    }
)


def index_of(annotations: Path) -> Path:
    """Path of the index of an annotation file, written on the first call.

    The index lies in the cache of `datasets` (`HF_DATASETS_CACHE`) and belongs to path, size and modification time, so
    an edited file gets another. Processes that ask at once wait for one of them to write it.

    Raises:
        ValueError: the file is absent, empty or malformed (the row is named), or the cache cannot be written.
    """
    check_file(annotations)
    stat = annotations.stat()
    identity = f"{INDEX_FORMAT}|{annotations.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return index_rows(annotations, identity, lambda advance: read_rows(annotations, advance), stat.st_size)


def check_file(annotations: Path) -> None:
    """Raises ValueError if there is no such annotation file, with the names of those beside it."""
    if not annotations.is_file():
        neighbours = [file.name for file in annotations.parent.glob("*.json*")]
        near = suggest(annotations.name, sorted(neighbours), otherwise=None if neighbours else "check the path")
        raise ValueError(f"no annotation file {annotations}; expected LLaVA json or jsonl: {near}")


def index_rows(
    location: object,
    identity: str,
    rows: Callable[[Callable[[int], Any]], Iterator[Any]],
    size: int,
) -> Path:
    """Path of the index of rows, written if there is none of this identity.

    Args:
        location: of the data, for messages.
        identity: a text that is another whenever the rows are.
        rows: gives LLaVA's rows; it is given what to call with the number of bytes read since the last call.
        size: the sum of those bytes.

    Raises:
        ValueError: a row is malformed, there is none, or the cache cannot be written.
    """
    folder = Path(datasets_config.HF_DATASETS_CACHE) / "prismatic"
    stem = re.sub(r"[^\w.-]", "_", Path(str(location)).stem)[:40]
    index = folder / f"{stem}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:20]}.arrow"
    if not index.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{index}.lock"):
                if not index.exists():
                    _write_index(location, index, rows, size)
        except OSError as error:
            raise ValueError(
                f"cannot index {location} into {folder} ({error}): point HF_DATASETS_CACHE to a folder with room"
            ) from error
    return index


def _write_index(location: object, index: Path, rows, size: int) -> None:
    partial = index.with_suffix(f".{os.getpid()}.partial")
    schema = FEATURES.arrow_schema
    total = 0
    bar = tqdm(total=size, unit="B", unit_scale=True, delay=1, desc=f"indexing {Path(str(location)).name}")
    try:
        with bar, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in _batches(rows(bar.update), location):
                total += len(batch)
                columns = [list(column) for column in zip(*batch, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        if not total:
            raise ValueError(f"{location} holds no rows; expected at least one conversation")
        os.replace(partial, index)
    finally:
        partial.unlink(missing_ok=True)


def _batches(rows: Iterator[Any], location: object) -> Iterator[list[tuple]]:
    batch = []
    for number, row in enumerate(rows):
        batch.append(checked(row, f"{location}: row {number}"))
        if len(batch) == ROWS_PER_RECORD_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def checked(row: Any, where: str) -> tuple:
    """Columns of one row in the order of `FEATURES`; keys that training never reads are dropped.

    Raises:
        ValueError: a column is absent or of another type.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {_show(row)}; expected an object with id, conversations and perhaps an image")
    identity, image, turns = row.get("id"), row.get("image"), row.get("conversations")
    if row.get("images"):
        raise ValueError(
            f"{where} has images {_show(row['images'])}, which are not read; expected the paths under 'image'"
        )
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError(f"{where} has id {_show(identity)}; expected a string or an integer: correct the row")
    paths = images_of(row) if isinstance(image, str | list | None) else [image]
    if not all(isinstance(path, str) and path for path in paths):
        raise ValueError(
            f"{where} has image {_show(image)}; expected one path, a list of paths, or no image for a text-only row"
        )
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f"{where} has conversations {_show(turns)}; expected a list of turns, each with 'from' and 'value': "
            "correct or remove the row"
        )
    kept = []
    for turn in turns:
        given = turn if isinstance(turn, dict) else {}
        role, text = given.get("from", given.get("role")), given.get("value", given.get("content"))
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError(
                f"{where} has the turn {_show(turn)}; expected strings 'from' and 'value', or 'role' and 'content': "
                "correct the row"
            )
        kept.append({"from": role, "value": text})
    try:
        for text in (str(identity), *paths, *(text for turn in kept for text in turn.values())):
            text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds half a surrogate pair ({error.reason}): remove the broken character"
        ) from error
    words = sum(len(turn["value"].split()) for turn in kept)
    row = {"image": paths, "conversations": kept}
    return str(identity), paths, kept, words, stray_marks(row), any(row_problems(row))


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_rows(path: Path, advance: Callable[[int], Any]) -> Iterator[Any]:
    """Rows of one JSON array, or of JSON lines, parsed while reading: memory does not grow with the file."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    parse = json.JSONDecoder().raw_decode
    text, at, number = "", 0, 0

    def read_more() -> bool:
        nonlocal text, at
        data = file.read(CHUNK_BYTES)
        advance(len(data))
        try:
            text, at = text[at:] + decode(data, not data), 0
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error.reason}) after row {number}: save it as UTF-8") from error
        return bool(data)

    def next_character() -> str:
        nonlocal at
        while True:
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            if at < len(text):
                return text[at]
            if not read_more():
                return ""

    with path.open("rb") as file:
        is_array = next_character() == "["
        at += is_array
        while (character := next_character()) and not (is_array and character == "]"):
            if is_array and number:
                if character != ",":
                    raise ValueError(f"{path}: {character!r} after row {number - 1}; expected ',' or ']': fix the JSON")
                at += 1
                next_character()
            while True:
                try:
                    row, at = parse(text, at)
                    break
                except (ValueError, RecursionError) as error:  # broken, or the rest of the row is not read yet
                    if len(text) - at > LONGEST_ROW or not read_more():
                        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                        raise ValueError(
                            f"{path}: row {number} is not valid JSON ({reason}); expected one array of rows, or one "
                            "row per line: fix the file or download it again"
                        ) from error
            yield row
            number += 1
        if is_array:
            if not character:
                raise ValueError(f"{path}: ends after row {number - 1} without ']': download it again")
            at += 1
            if character := next_character():
                raise ValueError(f"{path}: {character!r} after the closing ']'; expected the end of the file: fix it")
