"""Archives that lead out, grow beyond measure, lie or are damaged."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from evaluation_folders import zipped

from eval.archives import unpack


def hostile(kind: str, path: Path) -> None:
    if kind.startswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("good/a.txt", "a")
            if kind == "zip-link":
                info = zipfile.ZipInfo("good/link")
                info.external_attr = 0o120777 << 16
                archive.writestr(info, "../../outside")
            else:
                archive.writestr(
                    {"zip-up": "good/../../outside", "zip-root": "/outside", "zip-back": "..\\outside"}[kind], "x"
                )
        return
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("good/a.txt"))
        info = tarfile.TarInfo({"tar-up": "../outside"}.get(kind, "good/link"))
        if kind in ("tar-symlink", "tar-hardlink"):
            info.type = tarfile.SYMTYPE if kind == "tar-symlink" else tarfile.LNKTYPE
            info.linkname = "../../outside" if kind == "tar-symlink" else "../outside"
        elif kind == "tar-absolute-link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        elif kind == "tar-device":
            info.type = tarfile.FIFOTYPE
        archive.addfile(info)


@pytest.mark.parametrize(
    "kind",
    [
        "zip-up",
        "zip-root",
        "zip-back",
        "zip-link",
        "tar-up",
        "tar-symlink",
        "tar-hardlink",
        "tar-absolute-link",
        "tar-device",
    ],
)
def test_hostile_archives_write_nothing(kind, tmp_path):
    inner = tmp_path / "root"
    inner.mkdir()
    hostile(kind, inner / "archive")
    with pytest.raises(ValueError, match="is refused: its member"):
        unpack(inner / "archive", inner / "data" / "images")
    assert {p.name for p in tmp_path.rglob("*")} == {"root", "archive", "data"}


def bomb(kind: str, path: Path) -> None:
    """Archives of less than 1 MB that unpack to 200 MB and more."""
    zeros = bytes(20 << 20)
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for number in range(10):
                archive.writestr(f"a/{number}", zeros)
        return
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("a/0")
        info.size = len(zeros)
        archive.addfile(info, io.BytesIO(zeros))
        for number in range(1, 10):
            info = tarfile.TarInfo(f"a/{number}")
            info.size = len(zeros) if kind == "tar.gz" else 0
            if kind == "tar.gz links":
                info.type, info.linkname = tarfile.SYMTYPE, "0"
            archive.addfile(info, io.BytesIO(zeros) if info.isreg() else None)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.gz links"])
def test_bombs_are_refused(kind, tmp_path):
    bomb(kind, tmp_path / "archive")
    packed = (tmp_path / "archive").stat().st_size
    assert packed < 1 << 20
    with pytest.raises(ValueError, match=f"is refused: its {packed:,} bytes unpack to .*may be a bomb"):
        unpack(tmp_path / "archive", tmp_path / "data" / "images")
    assert {p.name for p in tmp_path.rglob("*")} == {"archive", "data"}


def test_a_zip_that_lies_about_its_size(tmp_path):
    content = bytearray(zipped({"a/b": bytes(1000), "a/c": b"x"}))
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02"))
    content[at + 24 : at + 28] = (10).to_bytes(4, "little")  # of 1,000
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "archive", tmp_path / "to")
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


def test_archives_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.archives.shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    (tmp_path / "archive").write_bytes(zipped({"a/b": bytes(1000)}))
    with pytest.raises(ValueError, match="unpacks to 1,000 bytes, .* has room for 10"):
        unpack(tmp_path / "archive", tmp_path / "to")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_damaged_archives_give_a_value_error_or_their_files(kind, tmp_path):
    files = {f"top/{name}": name.encode() * 300 for name in ("a", "b/c", "d")}
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "good", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(tmp_path / "good", f"w:{kind[4:]}") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    good, rng, refused = (tmp_path / "good").read_bytes(), random.Random(kind), 0
    headers = range(0, len(good), 512) if kind == "tar" else [0]
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[min(rng.choice(headers) + rng.randrange(512), len(good) - 1)] = rng.randrange(256)
        cut = rng.randrange(len(good)) if rng.random() < 0.2 else len(good)
        (tmp_path / "archive").write_bytes(damaged[:cut])
        try:
            unpack(tmp_path / "archive", tmp_path / "out" / "to")
            shutil.rmtree(tmp_path / "out")
        except ValueError as error:
            assert str(tmp_path / "archive") in str(error)
            refused += 1
    assert refused > 20
    print(f"{kind}: {refused} of 150 refused")
    assert {p.name for p in tmp_path.iterdir()} <= {"good", "archive", "out"}


def test_other_archives_are_told_apart(tmp_path):
    (tmp_path / "text").write_text("not an archive")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        unpack(tmp_path / "text", tmp_path / "to")
    (tmp_path / "short").write_bytes(zipped({"a/b": b"x" * 1000, "a/c": b"y" * 1000}))
    with pytest.raises(ValueError, match="holds no 'test.json', expected it somewhere below: a"):
        unpack(tmp_path / "short", tmp_path / "to", "test.json")
    damaged = bytearray((tmp_path / "short").read_bytes())
    damaged[100] ^= 255
    (tmp_path / "short").write_bytes(damaged)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "short", tmp_path / "to")
    assert {p.name for p in tmp_path.iterdir()} == {"text", "short"}


@pytest.mark.parametrize("kind", [b"L", b"x"])
@pytest.mark.parametrize("packs", [gzip.open, bz2.open, lzma.open])
def test_headers_of_tar_files_are_short(tmp_path, kind, packs):
    header, size = tarfile.TarInfo("h"), 32 << 20
    header.size, header.type = size, kind
    with packs(tmp_path / "a", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(size) + tarfile.TarInfo("b").tobuf() + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="it has a header of 33,554,432 bytes, expected at most 1,048,576"):
            unpack(tmp_path / "a", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()  # or all later tests are ten times slower


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_great_many_empty_files_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("eval.archives.MANY", 1000)
    for count in (500, 3000):
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "a", "w") as file:
                for number in range(count):
                    file.writestr(f"{number}", b"")
        else:
            with tarfile.open(tmp_path / "a", "w:gz") as file:
                for number in range(count):
                    file.addfile(tarfile.TarInfo(f"{number}"))
        if count == 500:
            unpack(tmp_path / "a", tmp_path / "few")
            assert len(list((tmp_path / "few").iterdir())) == 500
    with pytest.raises(ValueError, match="is refused: .* bytes hold .* files or more"):
        unpack(tmp_path / "a", tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_names_are_shown_escaped(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../\x1b[2J\nevil", b"x")
    with pytest.raises(ValueError, match=r"its member '../\\x1b\[2J\\nevil' is a path that leads out") as error:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert "\x1b" not in str(error.value)
