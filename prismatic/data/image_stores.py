"""Where the images of rows are: files below a folder, parquet, Arrow tables of `datasets`, tar shards."""

import functools
import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prismatic.data.containers.parquet_pages import extents, plain_chunks
from prismatic.data.tar_index import index_of
from vision_backbones.safe_images import leads_out

OPEN_FILES = 64  # handles a process keeps
CACHE_BYTES = 256 << 20  # of compressed parquet columns that a process keeps
OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".JPG", ".JPEG", ".PNG", ".GIF")


class DataError(ValueError):
    """What is wrong with the data, in one line, wherever it is found."""

    def __init__(self, message: str):
        # A DataLoader raises the error of its worker again, with a traceback in front of the message.
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


class BadImageError(DataError):
    """An image that is missing or cannot be decoded."""


class MissingImageError(BadImageError):
    """An image that is not there."""


class RefusedPathError(ValueError):
    """An image path that leads out of the image root."""


class FolderImages:
    """Image files below a root, by the paths that rows name."""

    def __init__(self, root: Path):
        """Takes the folder that paths are relative to."""
        self.root = Path(root)

    def open(self, row: int, number: int, name: str, where: object) -> Path | io.BytesIO:
        """An image of a row, as a file or its bytes.

        Args:
            row: of the data set.
            number: of the image in its row.
            name: what the index calls it: its path, if it has one.
            where: row and image, which messages begin with.

        Raises:
            MissingImageError: it is not there.
            RefusedPathError: its path leads out of the root.
            ValueError: the file was changed after the data set was opened.
        """
        path = self.confined(name, where)
        if not os.path.isfile(path):  # a named pipe would block for ever
            raise MissingImageError(f"{where}: missing, no file {path}; {_remedy(path)}")
        return path

    def confined(self, relative: str, where: object) -> Path:
        """The file at a path relative to the root.

        Raises:
            RefusedPathError: the path is absolute, holds `..`, or follows a symbolic link out of the root.
        """
        root = self.root
        if leads_out(relative):
            raise RefusedPathError(
                f"{where}: refused; expected a path relative to the image root {root}, without '..': correct the row"
            )
        path = Path(os.path.realpath(root / relative))
        if not path.is_relative_to(os.path.realpath(root)):
            raise RefusedPathError(
                f"{where}: refused, a symbolic link leads out of the image root {root} to {path}: "
                "copy or mount the images below the root"
            )
        return path

    def check(self, paths: Sequence[str], location: object, some: bool) -> None:
        """Raises ValueError if one of the paths (with `some`, all of them) names no file, or is refused.

        Folders are listed, once each, so that a hundred thousand images take a second.
        """
        for path in filter(leads_out, paths):
            self.confined(path, f"{location}: image {path!r}")
        listed = functools.lru_cache(maxsize=None)(lambda folder: _names(self.root / folder))
        places = map(os.path.split, map(os.path.normpath, paths))
        missing = [path for path, (folder, name) in zip(paths, places, strict=True) if name not in listed(folder)]
        if missing and (not some or len(missing) == len(paths)):
            first = self.root / missing[0]
            raise ValueError(
                f"{len(missing):,} of {len(paths):,} images of {location} are missing, such as {first}; "
                f"{_remedy(first)}"
            )


class ArrowImages(FolderImages):
    """Images in a column of an Arrow table that is mapped into memory; those without bytes are files by their path."""

    def __init__(self, rows: Any, column: str, root: Path):
        """Takes a `datasets.Dataset`, the name of the column, and the root of images that are only paths."""
        super().__init__(root)
        self.rows, self.column = rows, column

    def check(self, paths: Sequence[str], location: object, some: bool) -> None:  # noqa: D102
        pass

    def open(self, row: int, number: int, name: str, where: object) -> Path | io.BytesIO:  # noqa: D102
        data = _bytes_of(self.rows.data.column(self.column)[row], number)
        return super().open(row, number, name, where) if data is None else io.BytesIO(data)


class ParquetImages(FolderImages):
    """Images in a column of parquet files, read one by one where it is stored as it is, else by groups of rows.

    `datasets` writes images uncompressed: their places in the file are found once for each group of rows. Of compressed
    columns a process keeps the groups that it read last, up to `CACHE_BYTES`.
    """

    def __init__(self, files: "Files", footers: Sequence[pq.FileMetaData], column: str, counts: np.ndarray, root: Path):
        """Takes the files and their footers, the path of the column, the number of images of all rows, and the root."""
        super().__init__(root)
        self.files, self.column, self.counts = files, column, counts
        groups = [(file, group) for file, footer in enumerate(footers) for group in range(footer.num_row_groups)]
        self._chunks = [chunk for footer in footers for chunk in plain_chunks(footer, column)]
        self._places = np.array(groups)
        self._starts = np.cumsum([0, *(footers[file].row_group(group).num_rows for file, group in groups)])
        self._extents: dict[int, tuple[np.ndarray, ...]] = {}
        self._columns: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_extents": {}, "_columns": OrderedDict()}

    def check(self, paths: Sequence[str], location: object, some: bool) -> None:  # noqa: D102
        pass

    def open(self, row: int, number: int, name: str, where: object) -> Path | io.BytesIO:  # noqa: D102
        group = part(self._starts, row)
        row -= int(self._starts[group])
        if self._chunks[group] is None:
            data = _bytes_of(self._read(group)[row], number)
        else:
            slots, offsets, sizes = self._extents.get(group) or self._find(group)
            slot = int(slots[row]) + number
            descriptor, size = self.files.descriptor(int(self._places[group, 0])), int(sizes[slot])
            data = None if size < 0 else os.pread(descriptor, size, int(offsets[slot]))
        return super().open(row, number, name, where) if data is None else io.BytesIO(data)

    def _find(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each row the first value, and of each value its offset and size."""
        file, (start, stop) = int(self._places[group, 0]), self._starts[group : group + 2]
        values = np.maximum(self.counts[start:stop], 1)  # an absent or empty list is stored as one absent value
        try:
            found = extents(self.files.descriptor(file), self._chunks[group])
        except (ValueError, LookupError) as error:
            raise self._damaged(file, error) from error
        self._extents[group] = np.cumsum(values) - values, *found
        return self._extents[group]

    def _damaged(self, file: int, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())
        return ValueError(f"{self.files.paths[file]} is damaged ({reason}): download or write it again")

    def _read(self, group: int) -> pa.ChunkedArray:
        if group in self._columns:
            self._columns.move_to_end(group)
            return self._columns[group]
        file, number = self._places[group].tolist()
        try:
            with self.files.path(file).open("rb") as handle, pq.ParquetFile(handle) as parquet:
                column = parquet.read_row_group(number, columns=[self.column], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(file, error) from error
        kept = column.nbytes + sum(other.nbytes for other in self._columns.values())
        while self._columns and kept > CACHE_BYTES:
            kept -= self._columns.popitem(last=False)[1].nbytes
        self._columns[group] = column
        return column


class TarImages:
    """Images in tar shards, read by their offset."""

    def __init__(self, files: "Files", suffixes: Sequence[str], rows: Sequence[int]):
        """Takes the shards, the suffixes that they were indexed by, and the number of rows in each."""
        self.files, self.suffixes = files, suffixes
        self._starts = np.cumsum([0, *rows])
        self._tables: dict[int, pa.Table] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}}

    def check(self, paths: Sequence[str], location: object, some: bool) -> None:
        """Nothing is missing: the index lists what is there."""

    def open(self, row: int, number: int, name: str, where: object) -> io.BytesIO:
        """An image of a row; see `FolderImages.open`."""
        shard = part(self._starts, row)
        if shard not in self._tables:
            self._tables[shard] = index_of([self.files.path(shard)], self.suffixes)[0]
        table = self._tables[shard]
        at = pc.index(table["name"], pa.scalar(os.fsencode(name), pa.large_binary())).as_py()
        size, offset = table["size"][at].as_py(), table["offset"][at].as_py()
        return io.BytesIO(os.pread(self.files.descriptor(shard), size, offset))


class Files:
    """Files that are read again and again, by their number, for as long as they are those that were opened first."""

    def __init__(self, paths: Sequence[Path]):
        """Takes the files as they are now."""
        self.paths, self._stamps = list(paths), [stamp(path) for path in paths]
        self._handles: dict[int, io.FileIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}

    def path(self, number: int) -> Path:
        """A file, to be opened at once.

        Raises:
            ValueError: it is gone, or another one lies in its place.
        """
        path = self.paths[number]
        if not path.is_file() or stamp(path) != self._stamps[number]:
            raise ValueError(f"{path} has changed since the data was opened: restore it, or start again")
        return path

    def descriptor(self, number: int) -> int:
        """A descriptor to read from with `os.pread`: forked workers share its position. Raises what `path` does."""
        if number not in self._handles:
            path = self.path(number)
            if len(self._handles) == OPEN_FILES:
                self._handles.pop(next(iter(self._handles))).close()
            self._handles[number] = io.FileIO(path)
        return self._handles[number].fileno()


def stamp(path: Path) -> tuple[int, int]:
    """Size and modification time of a file, by which an edited one is noticed."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def part(starts: np.ndarray, row: int) -> int:
    """Which part a row lies in, where `starts` holds the first row of every part, and of what would follow."""
    return int(np.searchsorted(starts, row, side="right")) - 1


def _bytes_of(value: pa.Scalar, number: int) -> pa.Buffer | None:
    """The bytes of an image in an Arrow value, which may be a list, hold a path beside them, or none."""
    if hasattr(value, "values") and not isinstance(value, pa.StructScalar):
        value = value.values[number]
    if isinstance(value, pa.StructScalar):
        value = value["bytes"]
    return value.as_buffer()


def _names(folder: Path) -> set[str]:
    """Of the files in a folder: no folders, and no links that lead nowhere."""
    try:
        return {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        return set()


def _remedy(path: Path) -> str:
    for suffix in OTHER_SUFFIXES:
        if os.path.isfile(path.with_suffix(suffix)):
            return f"{path.with_suffix(suffix).name} lies there: convert it or correct the row"
    return "complete the download, correct the row, or skip bad images"
