"""Files of runs, read on behalf of a browser: known names only, below one folder, and no link that leads out of it."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from prismatic.checkpoints.run_folder import flat

DOCUMENTS = ("config.yaml", "metrics.jsonl", "summary.json", "results.json", "outcome.json", "compare.json", ".lock")
PICTURES = ("samples.png", "patches.png", "comparison.png", "classes.png")
REPORT = "report.html"
NAMES = frozenset((*DOCUMENTS, *PICTURES, REPORT))
MOST = 32 << 20  # bytes of a file that is read whole
TAIL = 32 << 10  # bytes of a metrics.jsonl that the list of runs looks at

MOST_KNOWN = 20_000  # files
DEEPEST = 50  # of settings in settings
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


class Unreadable(ValueError):
    """A file that is there and cannot be shown; the message has its name and the reason in a few words."""


class Folder:
    """What lies below a folder.

    Args:
        root: the folder; it may not be there yet.
    """

    def __init__(self, root: Path):
        self.given, self._known = Path(root), {}

    @property
    def root(self) -> Path:
        """The folder, without links."""
        return Path(os.path.realpath(self.given))

    def inside(self, path: Path) -> bool:
        """Whether a path, with all links followed, is below the folder."""
        return Path(os.path.realpath(path)).is_relative_to(self.root)

    def open(self, path: Path) -> BinaryIO:
        """A file to read.

        Raises:
            FileNotFoundError: it is not there.
            Unreadable: it is none of `NAMES`, no file, not below the folder, or there are no rights.
        """
        real = Path(os.path.realpath(path))
        if path.name not in NAMES or real.name != path.name or not real.is_relative_to(self.root):
            raise Unreadable(f"{path.name} is a link to elsewhere")
        try:
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(path) from error
        except OSError as error:
            raise Unreadable(f"{path.name}: {os.strerror(error.errno).lower()}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Unreadable(f"{path.name} is not a file")
        return os.fdopen(descriptor, "rb")

    def content(self, path: Path) -> bytes | None:
        """The bytes of a file; None where there is none.

        Raises:
            Unreadable: see `open`; or it is large.
        """
        try:
            with self.open(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size > MOST:
                    raise Unreadable(f"{path.name} is too large to show ({size >> 20} MB)")
                return file.read(MOST)
        except FileNotFoundError:
            return None

    def read(self, path: Path, parse: Callable[[bytes], Any], tail: int | None = None) -> Any:
        """What `parse` makes of a file's content, which it is asked anew only once the file has changed.

        Args:
            path: of the file.
            parse: raises ValueError for what is damaged.
            tail: how many of the last bytes are read, instead of all.

        Returns:
            None where there is no file.

        Raises:
            Unreadable: see `open`; or it is damaged, or large.
        """
        try:
            with self.open(path) as file:
                found = os.fstat(file.fileno())
                stamp = found.st_mtime_ns, found.st_size, found.st_ino
                key = path, parse, tail
                if self._known.get(key, (None,))[0] != stamp:
                    if len(self._known) > MOST_KNOWN:
                        self._known.clear()
                    self._known[key] = stamp, *self._parsed(file, path.name, parse, found.st_size, tail)
                _, value, error = self._known[key]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"{path.name}: {os.strerror(error.errno).lower()}") from None
        if error:
            raise Unreadable(error)
        return value

    def _parsed(self, file: BinaryIO, name: str, parse: Callable, size: int, tail: int | None) -> tuple[Any, str]:
        if size > MOST and tail is None:
            return None, f"{name} is too large to show ({size >> 20} MB)"
        if tail is not None and size > tail:
            file.seek(size - tail)
            file.readline()
        try:
            return parse(file.read(MOST + 1)), ""
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            return None, f"{name} is {'empty' if size == 0 else error if isinstance(error, _Told) else 'damaged'}"

    def stamp(self, path: Path) -> tuple[int, int] | None:
        """Time of the last change, in nanoseconds, and size of a file; None where none can be read."""
        try:
            with self.open(path) as file:
                found = os.fstat(file.fileno())
                return found.st_mtime_ns, found.st_size
        except (OSError, Unreadable):
            return None


class _Told(ValueError):
    """What is wrong with a file, after "is"."""


def settings_of(content: bytes) -> dict[str, Any]:
    """The settings in a `config.yaml`, by dotted name."""
    found = LOADER(content.decode("utf-8")).get_single_data()
    if not isinstance(found, dict) or not found:
        raise _Told("damaged: no settings")
    _check_tree(found, set())
    return {str(name): value for name, value in flat(found).items()}


def settings_of_results(content: bytes) -> dict[str, Any]:
    """The settings in the `results.json` of an evaluation, by dotted name; none where it has none."""
    found = json_object(content).get("settings")
    _check_tree(found, set())
    return flat(found) if isinstance(found, dict) else {}


def json_object(content: bytes) -> dict[str, Any]:
    """The object in a JSON file."""
    found = json.loads(content.decode("utf-8"))
    if not isinstance(found, dict):
        raise _Told("damaged: no object")
    return found


def rows_of(content: bytes) -> tuple[list[dict], int, bool]:
    """The rows of a `metrics.jsonl`, how many other lines are damaged, and whether the last one is cut off."""
    *lines, last = content.split(b"\n")
    found = [row_of(line) for line in lines if line.strip()]
    rows = [row for row in found if row]
    return rows, len(found) - len(rows), bool(last)


def row_of(line: bytes) -> dict | None:
    """A row of a `metrics.jsonl`; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step <= 10**15 else None


def _check_tree(value: Any, seen: set[int], depth: int = 0) -> None:
    """Raises for great depth, and for references: a few lines of them stand for billions of leaves, or have no end."""
    if isinstance(value, dict | list):
        if id(value) in seen or depth > DEEPEST:
            raise _Told("damaged: it refers to itself" if id(value) in seen else "damaged: too deep")
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            _check_tree(part, seen, depth + 1)


def at(found: Any, *names: str) -> Any:
    """What is at a place of nested dicts, None where there is nothing."""
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def number(found: Any) -> float | None:
    """A number; None if it is anything else."""
    return float(found) if type(found) is float or (type(found) is int and abs(found) < 1e300) else None
