"""Finding and reading what users downloaded, under the names that archives or the reference's preparation give it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class MissingData(ValueError):
    """Nothing lies where data should."""


def find(root: Path, task: str, folders: Sequence[str], *names: str) -> Path:
    """The first existing file or folder called one of `names` in a folder of the data root, or below its `download`.

    Raises:
        MissingData: None is there.
    """
    for folder in _places(root, folders):
        for name in names:
            if (folder / name).exists():
                return folder / name
    expected = " or ".join(names)
    raise MissingData(
        f"found no {expected} in {root / 'download' / folders[0]} or {root / folders[0]}: "
        f"fetch it with python -m eval prepare {task} --data_root {root}"
    )


def image_folder(root: Path, folders: Sequence[str], *names: str) -> str:
    """Path, relative to the data root, of the first image folder there is; of the last if none is."""
    places = _places(root, folders)
    there = [folder / name for folder in places for name in names if (folder / name).is_dir()]
    home = next((folder for folder in places if folder.is_dir()), places[0])
    return (there[0] if there else home / names[-1]).relative_to(root).as_posix()


@contextmanager
def reading(path: Path, task: str, shape: str) -> Iterator[None]:
    """Turns whatever goes wrong inside, while a file is taken apart, into a ValueError that names file and `shape`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is not as expected ({reason}): expected {shape}; fetch it again with python -m eval prepare {task}"
        ) from error


def read_json(path: Path, task: str, shape: str) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: It is no JSON.
    """
    with reading(path, task, shape):
        return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path, task: str, shape: str) -> list[dict]:
    """Rows of a file of JSON lines, whatever its name, or of one JSON list.

    Raises:
        ValueError: It is neither.
    """
    with reading(path, task, shape):
        text = path.read_text(encoding="utf-8")
        return (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(s) for s in text.split("\n") if s.strip()]
        )


def _places(root: Path, folders: Sequence[str]) -> list[Path]:
    return [root / parent / folder for folder in folders for parent in ("download", "")]
