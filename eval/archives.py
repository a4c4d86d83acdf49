"""Unpacks downloaded archives without letting them write anywhere else."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, NoReturn

from tqdm import tqdm

from vision_backbones.safe_images import leads_out

MOST_TIMES = 100  # its own size that an archive may unpack to; genuine ones stay below 30, a zip bomb reaches 1,000
SMALL = 64 << 20  # bytes that any archive may unpack to
MANY, BYTES_EACH = 100_000, 500  # files that any archive may hold; more if it has so many bytes for each
LONGEST = 1 << 20  # bytes that are read at once: what is longer is the header of a tar file, read whole
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)


class Member(NamedTuple):
    """A file in an archive."""

    path: PurePosixPath
    size: int  # bytes, unpacked
    read: Callable[[], IO[bytes]]


def unpack(archive: Path, to: Path, member: str | None = None) -> None:
    """Makes the content of a zip or tar file, or the file or folder called `member` in it, the file or folder `to`.

    A single folder around everything is left out. `to` appears only when it is complete.

    Raises:
        ValueError: The file is no archive, is damaged, lacks `member`, has a member or link that leads out of its
            folder, or would unpack to more than `MOST_TIMES` its size or than the disk holds.
    """
    tmp_path = to.with_name(f".{to.name}.{os.getpid()}")
    if tmp_path.is_dir():
        shutil.rmtree(tmp_path)
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(archive) as opened:
            members = _zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened)
            files = _below(list(_within_size(members, archive)), member, archive)
            total, free = sum(file.size for file in files), shutil.disk_usage(to.parent).free
            if total > free:
                raise ValueError(f"{archive} unpacks to {total:,} bytes, {to.parent} has room for {free:,}: make room")
            written = 0  # what links lead to is copied, and no header says its size
            for file in tqdm(files, desc=f"unpacking {archive.name}", unit="file"):
                path = tmp_path / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                with file.read() as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    written += target.tell()
                _check_size(written, archive)
        tmp_path.replace(to)
    except DAMAGE as error:
        raise ValueError(f"{archive} cannot be unpacked ({error}): delete it and fetch it again") from error
    finally:
        if tmp_path.is_dir():
            shutil.rmtree(tmp_path)
        else:
            tmp_path.unlink(missing_ok=True)


def _opened(archive: Path) -> zipfile.ZipFile | tarfile.TarFile:
    with archive.open("rb") as file:
        start, directory = file.read(6), zipfile.is_zipfile(file) and zipfile._EndRecData(file)
    if directory:
        _check_count(directory[zipfile._ECD_SIZE] // 46, archive)  # bytes of an entry, which are read all at once
        return zipfile.ZipFile(archive)
    known = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
    opens = next((opens for magic, opens in known if start.startswith(magic)), open)
    try:
        return tarfile.open(archive, "r:", _Sober(opens(archive, "rb")))
    except (tarfile.ReadError, EOFError) as error:
        if "header" in str(error) and "bytes" in str(error):
            raise
        raise ValueError(f"{archive} is neither a zip nor a tar file: delete it and fetch it again") from None


class _Sober:
    """A file that is never read in pieces of more than `LONGEST` bytes, whatever a header claims."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        """Reads as the file does.

        Raises:
            tarfile.TarError: It is too much.
        """
        if not 0 <= size <= LONGEST:
            raise tarfile.TarError(f"it has a header of {size:,} bytes, expected at most {LONGEST:,}")
        return self.file.read(size)


def _within_size(members: Iterator[Member], archive: Path) -> Iterator[Member]:
    """The members; stops at the one with which an archive would grow beyond measure, before it is unpacked."""
    total = 0
    for number, member in enumerate(members, 1):
        _check_count(number, archive)
        total += member.size
        _check_size(total, archive)
        yield member


def _check_count(files: int, archive: Path) -> None:
    packed = archive.stat().st_size
    if files > max(MANY, packed // BYTES_EACH):
        raise ValueError(f"{archive} is refused: {packed:,} bytes hold {files:,} files or more; nothing was kept of it")


def _check_size(unpacked: int, archive: Path) -> None:
    packed = archive.stat().st_size
    if unpacked > max(SMALL, MOST_TIMES * packed):
        raise ValueError(
            f"{archive} is refused: its {packed:,} bytes unpack to {unpacked:,} or more, expected at most {MOST_TIMES} "
            "times as many; it may be a bomb: nothing was kept of it"
        )


def _zip_members(opened: zipfile.ZipFile) -> Iterator[Member]:
    for info in opened.infolist():
        path = _safe(info.filename, opened.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            _refuse(info.filename, "a link", opened.filename)
        if not info.is_dir():
            yield Member(path, info.file_size, lambda info=info: opened.open(info))


def _tar_members(opened: tarfile.TarFile) -> Iterator[Member]:
    for info in opened:
        path = _safe(info.name, opened.name)
        if info.issym() or info.islnk():
            start = path.parent if info.issym() else PurePosixPath()
            _safe(os.path.normpath(start / info.linkname), opened.name)
        elif not (info.isfile() or info.isdir()):
            _refuse(info.name, "a device", opened.name)
        if not info.isdir():
            yield Member(path, info.size, lambda info=info: _tar_file(opened, info))


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
    if leads_out(name):
        _refuse(name, "a path that leads out of its folder", archive)
    return PurePosixPath(name.replace("\\", "/"))


def _refuse(name: str, why: str, archive: object) -> NoReturn:
    raise ValueError(f"{archive} is refused: its member {ascii(name)[:200]} is {why}; nothing was kept of it")


def _below(files: list[Member], member: str | None, archive: Path) -> list[Member]:
    """The files to write, with their places relative to the target."""
    files = [f for f in files if f.path.parts and f.path.parts[0] != "__MACOSX" and f.path.name != ".DS_Store"]
    parts = [file.path.parts for file in files]
    if member is None:
        top = parts[0][:1] if len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts) else ()
    else:
        found = sorted({p[: p.index(member) + 1] for p in parts if member in p}, key=len)
        if not found:
            listed = ", ".join(ascii(top)[1:-1][:80] for top in sorted({p[0] for p in parts})[:10])
            raise ValueError(f"{archive} holds no '{member}', expected it somewhere below: {listed}")
        top = found[0]
    inside = [f for f in files if f.path.parts[: len(top)] == top]
    return [f._replace(path=PurePosixPath(*f.path.parts[len(top) :])) for f in inside]
