"""Images inside the files that benchmarks come in: parquet, the TSV of VLMEvalKit, and json, read where they are.

Such an image is called `cv-bench/test_2d.parquet#17/image`: a file below the data root, the number of a row, from 0,
and a column; then, where the column holds a list, `/2`, the number of the image in it. Nothing is unpacked.
"""

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.data.tables import Place, Table
from vision_backbones.files import describe
from vision_backbones.safe_images import leads_out

KINDS = (".parquet", ".tsv", ".json", ".jsonl")
_REFERENCE = re.compile(rf"(.+(?:{'|'.join(map(re.escape, KINDS))}))#(\d{{1,18}})/([^/]+?)(?:/(\d{{1,9}}))?")
KEPT = 64  # files whose index a process keeps


def rows_with_images(path: Path, root: Path, columns: Sequence[str] = ("image",)) -> Iterator[dict[str, Any]]:
    """Rows of a file, with a tuple of references in each column of images, empty where a row has none.

    Args:
        path: One of `KINDS`.
        root: Data root, which the file lies below.
        columns: Those that hold images: bytes, base64, or lists of them.

    Raises:
        ValueError: The file is damaged, or lacks one of these columns.
    """
    below = path.relative_to(root).as_posix()
    for row in _table(path, tuple(columns)).rows():
        yield row | {column: tuple(_reference(below, place) for place in row[column]) for column in columns}


def pictured(rows: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Those rows that have an image, as VLMEvalKit takes them; a warning counts the others, which a file has too."""
    without = 0
    for row in rows:
        if row["image"]:
            yield row
        else:
            without += 1
    if without:
        warnings.warn(f"{path}: {without:,} rows without an image are left out", stacklevel=2)


def only(images: Sequence[str]) -> str:
    """The image of a row that has one.

    Raises:
        ValueError: It has none, or several.
    """
    if len(images) != 1:
        raise ValueError(f"{len(images)} images, expected one")
    return images[0]


def source(root: Path, image: str) -> Path | io.BytesIO:
    """What an example calls `image`: a file, or the bytes of one that lies inside another file.

    Raises:
        ValueError: It leads out of the data root, or there is no such row, column or image.
        OSError: There is no such file.
    """
    if leads_out(image):
        raise ValueError(f"{image[:80]!r} leads out of the data root")
    file, place = _parted(image)
    if place is None:
        return root / file
    return io.BytesIO(_table(root / file, (place[1],)).read(place))


def is_there(root: Path, image: str) -> bool:
    """Whether the file of an image is there, or the one that holds it."""
    return (root / _parted(image)[0]).is_file()


def digest(root: Path, image: str) -> str:
    """SHA-256 of an image file, wherever it lies."""
    found = source(root, image)
    return describe(found)["sha256"] if isinstance(found, Path) else hashlib.sha256(found.getbuffer()).hexdigest()


def _reference(below: str, place: Place) -> str:
    row, column, number = place
    return f"{below}#{row}/{column}" + ("" if number is None else f"/{number}")


def _parted(image: str) -> tuple[str, Place | None]:
    """The file of an image, and its place in it if it lies inside."""
    found = _REFERENCE.fullmatch(image)
    if not found:
        return image, None
    file, row, column, number = found.groups()
    return file, (int(row), column, None if number is None else int(number))


def _table(path: Path, columns: tuple[str, ...]) -> Table:
    stat = path.stat()
    return _opened(path, columns, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(KEPT)
def _opened(path: Path, columns: tuple[str, ...], *stamp: int) -> Table:
    """The file as it is now: size and time are part of what is kept."""
    if path.suffix == ".parquet":
        from eval.data.parquet import ParquetTable  # pyarrow takes half a second

        return ParquetTable(path, columns)
    if path.suffix == ".tsv":
        from eval.data.tsv import TsvTable

        return TsvTable(path, columns)
    if path.suffix in KINDS:
        from eval.data.json_images import JsonTable

        return JsonTable(path, columns)
    raise ValueError(f"{path} is none of {', '.join(KINDS)}")
