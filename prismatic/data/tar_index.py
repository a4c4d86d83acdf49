"""Where every image lies in tar shards, so that any of them can be read on its own."""

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from pyarrow import feather
from tqdm import tqdm

from vision_backbones.names import suggest

INDEX_FORMAT = 1  # raise it whenever the content of an index changes
LONGEST_LABEL = 100  # bytes
NUMBERED = re.compile(r"^\.\d+\.")  # of the images of one key
SCHEMA = pa.schema({"name": pa.large_binary(), "offset": pa.int64(), "size": pa.int64(), "label": pa.int64()})


def index_of(shards: Sequence[Path], suffixes: Sequence[str]) -> list[pa.Table]:
    """The images of each shard in webdataset's convention: `key.jpg` and, where it has a class, `key.cls`.

    A key ends at the first dot of the file name. The index of a shard is written once, into
    `$XDG_CACHE_HOME/prismatic`, and belongs to its path, size and modification time. Processes that ask at once wait
    for one of them to write it.

    Args:
        shards: uncompressed tar files.
        suffixes: in lower case, with the dot; ".#.jpg" stands for `key.0.jpg`, `key.1.jpg` and so on.

    Returns:
        A table for each shard: `name`; `offset` and `size` of the data in bytes; `label`, -1 without `key.cls`.

    Raises:
        ValueError: a shard is no tar, truncated, or has a label that is no class number; or the cache cannot be
            written.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prismatic" / "tar-index"
    indexes = {shard: folder / f"{shard.stem[:40]}-{_identity(shard, suffixes)}.arrow" for shard in shards}
    if not all(index.exists() for index in indexes.values()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                _write_missing(indexes, suffixes)
        except OSError as error:
            raise ValueError(
                f"cannot index tar shards into {folder} ({error}): point XDG_CACHE_HOME to a folder with room"
            ) from error
    return [feather.read_table(indexes[shard]) for shard in shards]


def _identity(shard: Path, suffixes: Sequence[str]) -> str:
    stat = shard.stat()
    identity = f"{INDEX_FORMAT}|{suffixes}|{shard.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:20]


def _write_missing(indexes: dict[Path, Path], suffixes: Sequence[str]) -> None:
    missing = {shard: index for shard, index in indexes.items() if not index.exists()}
    sizes = {shard: shard.stat().st_size for shard in missing}
    bar = tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, delay=1, desc="indexing tar shards")
    with bar:
        for shard, index in missing.items():
            partial = index.with_suffix(f".{os.getpid()}.partial")
            try:
                feather.write_feather(_scan(shard, suffixes), partial, compression="uncompressed")
                os.replace(partial, index)
            finally:
                partial.unlink(missing_ok=True)
            bar.update(sizes[shard])


def _scan(shard: Path, suffixes: Sequence[str]) -> pa.Table:
    keys, names, offsets, sizes, label_of = [], [], [], [], {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep every header
                folder, _, file = member.name.rpartition("/")
                stem, dot, suffix = file.partition(".")
                # Without a stem: hidden files, which macOS writes (._key.jpg) beside key.jpg.
                if not stem or not member.isreg() or member.issparse():
                    continue
                key, suffix = f"{folder}/{stem}", (dot + suffix).lower()
                if suffix == ".cls":
                    label_of[key] = _label(tar.extractfile(member).read(LONGEST_LABEL), f"{shard}: {member.name}")
                elif NUMBERED.sub(".#.", suffix) in suffixes:
                    keys.append(key)
                    names.append(member.name.encode(errors="surrogateescape"))
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
            # tarfile takes a file that breaks off at a header for a complete one.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end-of-archive mark at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"{shard}: truncated, damaged or not an uncompressed tar ({error}): download or pack it again"
        ) from error
    return pa.table([names, offsets, sizes, [label_of.get(key, -1) for key in keys]], schema=SCHEMA)


def _label(text: bytes, where: str) -> int:
    if not re.fullmatch(rb"\s*\d{1,7}\s*", text):
        raise ValueError(f"{where} holds {text[:40]!r}; expected a class number such as 17: correct the shard")
    return int(text)


def matching(pattern: str, expected: str) -> list[Path]:
    """The files that a pattern with braces or wildcards stands for.

    Args:
        pattern: as for `expand_braces`, or with `*`.
        expected: what could have been given, for the message where nothing is there.

    Raises:
        ValueError: there are none, or some of those in braces are missing.
    """
    if "{" in pattern:
        shards = [Path(path) for path in expand_braces(pattern)]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise ValueError(
                f"{len(missing)} of the {len(shards)} shards of {pattern} are missing: {', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''}; correct the range, or complete the download"
            )
        return shards
    if shards := sorted(Path(path) for path in glob.glob(pattern)):
        return shards
    parent = Path(pattern).parent
    around = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    near = suggest(Path(pattern).name, around, otherwise=f"{parent} holds {', '.join(around[:5]) or 'nothing'}")
    raise ValueError(f"nothing at {pattern}; expected {expected}: {near}")


def expand_braces(pattern: str) -> Iterator[str]:
    """Every path that a pattern like `in21k-{000..123}.tar` stands for, each as wide as the first number.

    Raises:
        ValueError: the braces hold anything but a rising range of numbers.
    """
    if "{" not in pattern and "}" not in pattern:
        yield pattern
        return
    found = re.fullmatch(r"([^{}]*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not found or int(found[2]) > int(found[3]):
        raise ValueError(f"cannot read the braces of {pattern!r}; expected a rising range such as {{000..123}}")
    head, first, last, tail = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from expand_braces(f"{head}{number:0{len(first)}}{tail}")
