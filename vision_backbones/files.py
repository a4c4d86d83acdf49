"""Files and folders that are never half there: written beside their place, on the disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(path: Path) -> dict:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Returns the path to write a file to; then it takes the place of `path`, or is gone where writing failed."""
    tmp_path = path.with_name(f".{path.name}.unfinished")
    try:
        yield tmp_path
        sync(tmp_path)
        tmp_path.replace(path)
        sync(path.parent)
    except BaseException:
        tmp_path.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, **options) -> None:
    """Writes a text file, all or nothing; `options` are those of `Path.write_text`."""
    with replacing(path) as tmp_path:
        tmp_path.write_text(text, **({"encoding": "utf-8"} | options))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, all or nothing."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path, remedy: str, *needed: str) -> dict[str, Any]:
    """The content of a JSON file that holds an object with at least the `needed` names.

    Raises:
        ValueError: It is torn, or another's; the message ends with the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, got {type(content).__name__}")
        if absent := [name for name in needed if name not in content]:
            raise ValueError(f"it has no {', '.join(absent)}")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): {remedy}") from error
    return content


def put_folder(tmp_path: Path, folder: Path, previous: Path | None = None) -> None:
    """Puts a written folder, once it is on the disk, in the place of `folder`, which goes to `previous` or is gone."""
    for path in tmp_path.rglob("*"):
        sync(path)
    sync(tmp_path)
    aside = previous or folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    tmp_path.rename(folder)
    sync(folder.parent)
    if not previous:
        shutil.rmtree(aside, ignore_errors=True)


def clean_up(parent: Path) -> None:
    """Removes what interrupted writers left in a folder, and brings back what `put_folder` had put aside."""
    for aside in parent.glob(".*.replaced"):
        folder = parent / aside.name[1 : -len(".replaced")]
        if folder.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(folder)
    for left in parent.glob(".*.unfinished"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
