"""The tables of VLMEvalKit: tab-separated, with images in base64, of hundreds of megabytes.

Only the texts are kept, and where in the file each image is. A cell of images holds base64, a list of them, or, if it
has at most 64 characters, the index of the row that holds the image. Equal images are the first one of them.
"""

import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.data.readers import index_of, shown
from eval.data.tables import Place, decoded

LONGEST_INDEX = 64  # characters
# A cell and what ends it. Quotes count only around a whole cell, and are doubled inside it.
_CELL = re.compile(rb'("[^"]*(?:""[^"]*)*")?[^\t\r\n]*(\t|\r?\n|\r|\Z)')
_ITEM = re.compile(rb"[^\s\[\],'\"]+")  # of a list of base64
Span = tuple[int, int]  # of bytes in the file


class TsvTable:
    """A table, see `eval.data.tables.Table`; cells of text are strings."""

    def __init__(self, path: Path, columns: Sequence[str]):
        """Finds all cells.

        Raises:
            ValueError: The file is no such table.
        """
        self.path = path
        self.texts: list[dict[str, str]] = []
        self.spans: list[dict[str, list[Span]]] = []
        self.lists: set[tuple[int, str]] = set()  # row and column of cells that hold a list
        seen: dict[bytes, Place] = {}
        self.equal: dict[Place, Place] = {}  # images that an earlier one equals
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            table = self._cells(content)
            names = [_text(content[start:end]) for start, end in next(table, [])]
            if len(set(names)) < len(names) or (lacking := {*columns} - {*names}):
                told = "it has a column twice" if len(set(names)) < len(names) else f"it lacks {', '.join(lacking)}"
                raise ValueError(f"{told}; its columns are {shown(', '.join(names))}")
            for row, cells in enumerate(table):
                if len(cells) != len(names):
                    raise ValueError(f"row {row} has {len(cells)} cells, expected {len(names)}")
                named = dict(zip(names, cells, strict=True))
                self.texts.append({n: _text(content[a:b]) for n, (a, b) in named.items() if n not in columns})
                self.spans.append({column: self._images(content, row, column, named[column]) for column in columns})
                for place in (place for column in columns for place in self._places(row, column)):
                    start, end = self._span(place)
                    if end - start > LONGEST_INDEX:
                        first = seen.setdefault(hashlib.blake2b(content[start:end]).digest(), place)
                        self.equal[place] = first
            self._follow(content, columns)

    def rows(self) -> Iterator[dict[str, Any]]:
        """See `Table`."""
        for row, (texts, spans) in enumerate(zip(self.texts, self.spans, strict=True)):
            yield texts | {column: [self.equal[place] for place in self._places(row, column)] for column in spans}

    def read(self, place: Place) -> bytes:
        """See `Table`."""
        if place not in self.equal:
            raise ValueError(f"{self.path} has no image in row {place[0]}, column {place[1]}, number {place[2]}")
        start, end = self._span(self.equal[place])
        with self.path.open("rb") as file:
            file.seek(start)
            return decoded(file.read(end - start))

    def _cells(self, content: mmap.mmap) -> Iterator[list[Span]]:
        """Where the cells of each line are; lines with nothing in them are left out."""
        cells: list[Span] = []
        at = 3 if content[:3] == b"\xef\xbb\xbf" else 0
        while at < len(content):
            found = _CELL.match(content, at)
            if found is None or (found[1] is None and content[at : at + 1] == b'"'):
                raise ValueError(f"a quote that opens in row {len(self.texts)} is never closed")
            cells.append((at, found.start(2)))
            at = found.end()
            if found[2] != b"\t":
                if len(cells) > 1 or cells[0][0] < cells[0][1]:
                    yield cells
                cells = []
        if cells:
            yield cells

    def _images(self, content: mmap.mmap, row: int, column: str, cell: Span) -> list[Span]:
        """Where the images of a cell are, or the index that it holds."""
        start, end = cell
        if content[start : start + 1] == b'"' and end - start > 1:
            start, end = start + 1, end - 1
        if content[start : start + 1] == b"[":
            self.lists.add((row, column))
            return [item.span() for item in _ITEM.finditer(content, start, end)]
        return [(start, end)] if content[start:end].strip() else []

    def _places(self, row: int, column: str) -> list[Place]:
        listed = (row, column) in self.lists
        return [(row, column, number if listed else None) for number in range(len(self.spans[row][column]))]

    def _span(self, place: Place) -> Span:
        row, column, number = place
        return self.spans[row][column][number or 0]

    def _follow(self, content: mmap.mmap, columns: Sequence[str]) -> None:
        """Puts the image of another row in the place of its index."""
        by_index = {index_of(texts.get("index", "")): row for row, texts in reversed(list(enumerate(self.texts)))}
        for row in range(len(self.texts)):
            for place in (place for column in columns for place in self._places(row, column)):
                if place in self.equal:
                    continue
                index = index_of(_text(content[slice(*self._span(place))]))
                other = by_index.get(index)
                held = [] if other is None else self._places(other, place[1])
                if len(held) != 1 or held[0] not in self.equal:
                    raise ValueError(f"the image of row {row} is {shown(index)}: no base64, and no row that holds one")
                self.equal[place] = self.equal[held[0]]


def _text(cell: bytes) -> str:
    """A cell's text. Raises ValueError if it is no UTF-8."""
    if cell.startswith(b'"'):
        quoted, _, rest = cell[1:].rpartition(b'"')
        cell = quoted.replace(b'""', b'"') + rest
    return cell.decode("utf-8")
