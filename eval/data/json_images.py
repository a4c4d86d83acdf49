"""Json and JSON lines with images in base64, of hundreds of megabytes: only what lies around the images is kept.

Equal images are the first one of them.
"""

import hashlib
import mmap
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.data.readers import parse_rows
from eval.data.tables import Place, decoded

SHORTEST = 64  # characters of base64; shorter values are texts


class JsonTable:
    """A list of objects, see `eval.data.tables.Table`."""

    def __init__(self, path: Path, columns: Sequence[str]):
        """Finds all images.

        Raises:
            ValueError: The file is no list of objects.
        """
        self.path, self.spans, self.columns = path, [], columns
        names = b"|".join(re.escape(column.encode()) for column in columns)
        image = re.compile(rb'"(?:%s)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"' % names)
        mark, at, around = secrets.token_hex(16), 0, []  # stands for an image while the rest is parsed
        digests: list[bytes] = []
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for found in image.finditer(content):
                start, end = found.span(1)
                if end - start >= SHORTEST:
                    around += [content[at:start], f"{mark}{len(self.spans)}".encode()]
                    self.spans.append((start, end))
                    digests.append(hashlib.blake2b(content[start:end]).digest())
                    at = end
            around.append(content[at:])
        self.content = parse_rows(b"".join(around).decode("utf-8-sig"))
        self.images: dict[Place, tuple[int, int]] = {}
        self.firsts: dict[Place, Place] = {}  # that images equal
        seen: dict[bytes, Place] = {}
        for number, row in enumerate(self.content):
            for column in columns:
                value = row.get(column) if isinstance(row, dict) else None
                if isinstance(value, str) and value.startswith(mark):
                    place, span = (number, column, None), int(value.removeprefix(mark))
                    self.images[place] = self.spans[span]
                    self.firsts[place] = seen.setdefault(digests[span], place)

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Table`."""
        for number, row in enumerate(self.content):
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}, expected an object")
            places = {column: (number, column, None) for column in self.columns}
            for column, place in places.items():
                if place not in self.images and row.get(column) is not None:
                    raise ValueError(f"{column} is no image in base64")
            yield row | {column: [self.firsts[at]] if at in self.firsts else [] for column, at in places.items()}

    def read(self, place: Place) -> bytes:
        """See `Table`."""
        if place not in self.images:
            raise ValueError(f"{self.path} has no image in row {place[0]}, column {place[1]}")
        start, end = self.images[place]
        with self.path.open("rb") as file:
            file.seek(start)
            return decoded(file.read(end - start).replace(b"\\/", b"/").replace(b"\\n", b""))
