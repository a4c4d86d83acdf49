"""Unpacks downloaded archives without letting them write anywhere else."""

import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from tqdm import tqdm

Member = tuple[PurePosixPath, Callable[[], IO[bytes]]]  # place in the archive, and how to open it


def unpack(archive: Path, to: Path, member: str | None = None) -> None:
    """Makes the content of a zip or tar file, or the file or folder called `member` in it, the file or folder `to`.

    A single folder around everything is left out. `to` appears only when it is complete.

    Raises:
        ValueError: The file is no archive, lacks `member`, or has a member or link that leads out of its folder.
    """
    beside = to.with_name(f".{to.name}.{os.getpid()}")
    if beside.is_dir():
        shutil.rmtree(beside)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(archive) as opened:
            files = list(_zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened))
            for inside, read in tqdm(_below(files, member, archive), desc=f"unpacking {archive.name}", unit="file"):
                path = beside / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with read() as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
        beside.replace(to)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be unpacked ({error}): delete it and fetch it again") from error
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    if zipfile.is_zipfile(archive):
        return zipfile.ZipFile(archive)
    if tarfile.is_tarfile(archive):
        return tarfile.open(archive)
    raise ValueError(f"{archive} is neither a zip nor a tar file: delete it and fetch it again")


def _zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        path = _safe(info.filename, opened.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            _refuse(info.filename, "a link", opened.filename)
        if not info.is_dir():
            yield path, lambda info=info: opened.open(info)


def _tar_members(opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened.getmembers():
        path = _safe(info.name, opened.name)
        if info.issym() or info.islnk():
            start = path.parent if info.issym() else PurePosixPath()
            _safe(os.path.normpath(start / info.linkname), opened.name)
        elif not (info.isfile() or info.isdir()):
            _refuse(info.name, "a device", opened.name)
        if not info.isdir():
            yield path, lambda info=info: _tar_file(opened, info)


def _tar_file(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    """Content of a file; of what it leads to if it is a link."""
    try:
        file = opened.extractfile(info)
    except KeyError:
        file = None
    if file is None:
        _refuse(info.name, "a link to what is not in it", opened.name)
    return file


def _safe(name: str, archive: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        _refuse(name, "a path that leads out of its folder", archive)
    return path


def _refuse(name: str, why: str, archive: object) -> NoReturn:
    raise ValueError(f"{archive} is refused: its member '{name}' is {why}; nothing was kept of it")


def _below(files: list[Member], member: str | None, archive: Path) -> list[Member]:
    """The files to write, with their places relative to the target."""
    files = [(p, read) for p, read in files if p.parts[0] != "__MACOSX" and p.name != ".DS_Store"]
    if member is None:
        wrapped = len({path.parts[0] for path, _ in files}) == 1 and all(len(path.parts) > 1 for path, _ in files)
        depth = int(wrapped)
        return [(PurePosixPath(*path.parts[depth:]), read) for path, read in files]
    found = sorted({p.parts[: p.parts.index(member) + 1] for p, _ in files if member in p.parts}, key=len)
    if not found:
        listed = ", ".join(sorted({path.parts[0] for path, _ in files})[:10])
        raise ValueError(f"{archive} holds no '{member}', expected it somewhere below: {listed}")
    top = found[0]
    return [(PurePosixPath(*p.parts[len(top) :]), read) for p, read in files if p.parts[: len(top)] == top]
