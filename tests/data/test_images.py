import os
import pickle
import tarfile

import numpy as np
import pytest
from golden_cases import requires_samples, samples_dir
from picture_files import grey, picture, write, write_tar
from PIL import Image

from prismatic.data import tar_index
from prismatic.data.conversation_dataset import BadImageError
from prismatic.data.image_datasets import SHARDS_AT_ONCE
from prismatic.data.images import open_images
from prismatic.miniature import llava_writer as writers
from prismatic.miniature import make_vit, scenes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def shards_of(folder, counts, start=0):
    """Shards with so many pictures each, numbered through by their grey level; even ones have their number as class."""
    folder.mkdir(exist_ok=True)
    for shard, count in enumerate(counts):
        members = []
        for number in range(start, start + count):
            members.append((f"{number:04d}.png", picture(number)))
            if number % 2 == 0:
                members.insert(-(number % 3) or len(members), (f"{number:04d}.cls", f"{number}\n".encode()))
        start += count
        write_tar(folder / f"part-{shard:03d}.tar", members)
    return folder


@requires_samples
@pytest.mark.parametrize("split", ["train", "val"])
def test_imagenet(split):
    root = samples_dir() / "imagenet" / split
    source = open_images(str(root))
    files = sorted(root.glob("*/*.JPEG"))
    assert source.classes == sorted(folder.name for folder in root.iterdir())
    assert [source.name(row) for row in range(len(source))] == [str(file) for file in files]
    for (image, label), file in zip(source, files, strict=True):
        assert image.mode == "RGB" and source.classes[label] == file.parent.name
        assert np.array_equal(image, Image.open(file).convert("RGB"))


def test_folder_of_odd_files(tmp_path):
    root = tmp_path / "images"
    files = {
        "b/1.PNG": ("RGB", "PNG"),
        "b/grey.JPG": ("L", "JPEG"),
        "b/cmyk.jpeg": ("CMYK", "JPEG"),
        "a/x/png named.JPEG": ("P", "PNG"),
        "a/x/\udcff.webp": ("RGBA", "WEBP"),  # no UTF-8
        "top.png": ("LA", "PNG"),
    }
    for number, (name, (mode, format)) in enumerate(files.items()):
        write(root / name, picture(10 * number, mode, format))
    for name in ("b/notes.txt", "b/._1.PNG", ".thumbnails/1.png"):
        write(root / name, b"")
    (root / "a" / "again").symlink_to(root)
    os.mkfifo(root / "b" / "pipe.png")
    (root / "elsewhere").symlink_to(tmp_path / "other")
    write(tmp_path / "other" / "z.png", picture(99))

    source = open_images(str(root))
    assert source.classes == ["b", "elsewhere", "x"]
    expected = ["top.png", "a/x/png named.JPEG", "a/x/\udcff.webp", "b/1.PNG", "b/cmyk.jpeg", "b/grey.JPG"]
    assert [source.name(row) for row in range(7)] == [str(root / n) for n in [*expected, "elsewhere/z.png"]]
    assert [label for _, label in source] == [-1, 2, 2, 0, 0, 0, 1]
    levels = [10 * list(files).index(name) for name in expected] + [99]
    assert [grey(image) for image, _ in source] == pytest.approx(levels, abs=3)
    assert [image.mode for image, _ in source] == ["RGB"] * 7
    with pytest.raises(IndexError):
        source[7]


def test_flat_folder_has_no_classes(tmp_path):
    write(tmp_path / "flat" / "1.png", picture(1))
    source = open_images(str(tmp_path / "flat"))
    assert source.classes == [] and source[0][1] == -1


@pytest.mark.parametrize("place", ["", "/*.tar", "/part-{000..002}.tar", "/part-{0..0}{00..02}.tar"])
def test_tar_shards(tmp_path, place):
    folder = shards_of(tmp_path / "shards", [5, 0, 4])
    source = open_images(str(folder) + place)
    assert [(grey(image), label) for image, label in source] == [(n, n if n % 2 == 0 else -1) for n in range(9)]
    assert source.name(5) == f"{folder}/part-002.tar: 0005.png"
    assert source.classes == [str(n) for n in range(9)]
    again = pickle.loads(pickle.dumps(source))
    assert grey(again[7][0]) == 7


def test_what_a_tar_may_hold(tmp_path):
    long = "deep/" * 40
    members = [
        ("./a/1.JPG", picture(10, format="JPEG")),
        ("./b/1.cls", b" 3\n"),
        ("./b/1.webp", picture(20, format="WEBP")),
        ("./b/1.seg.png", picture(99)),
        ("./b/._1.jpg", b"mac"),
        ("./b/1.txt", b"a caption"),
        (f"{long}é.jpeg", picture(30, "L", "JPEG")),
    ]
    path = write_tar(tmp_path / "one.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    source = open_images(str(path))
    assert [label for _, label in source] == [-1, 3, -1]
    assert [grey(image) for image, _ in source] == pytest.approx([10, 20, 30], abs=2)
    assert source.name(2).endswith("/é.jpeg") and source.classes == ["0", "1", "2", "3"]


def test_a_changed_shard_is_indexed_alone(tmp_path, monkeypatch):
    folder = shards_of(tmp_path / "shards", [3, 3])
    scanned = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda shard, suffixes: scanned.append(shard.name) or scan(shard, suffixes))
    assert len(open_images(str(folder))) == 6 and scanned == ["part-000.tar", "part-001.tar"]
    assert len(open_images(str(folder))) == 6 and len(scanned) == 2
    shards_of(folder, [2], start=100)
    assert [grey(image) for image, _ in open_images(str(folder))] == [100, 101, 3, 4, 5]
    assert scanned[2:] == ["part-000.tar"]


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("prismatic.data.image_datasets.OPEN_SHARDS", 2)
    source = open_images(str(shards_of(tmp_path / "shards", [2] * 5)))
    before = len(os.listdir("/proc/self/fd"))
    assert [grey(source[row][0]) for row in (9, 0, 5, 3, 8, 1)] == [9, 0, 5, 3, 8, 1]
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_truncated_shards_are_named(tmp_path):
    whole = (shards_of(tmp_path / "shards", [3]) / "part-000.tar").read_bytes()
    broken = tmp_path / "broken.tar"
    header = 512 * (1 + -(-len(picture(0)) // 512))  # where the member after the first picture begins
    for length in (0, 100, 600, header, header + 100, header + 512, len(whole) // 3):
        broken.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"broken\.tar: truncated, .* download"):
            open_images(str(broken))
    broken.write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"broken\.tar: .* not an uncompressed tar"):
        open_images(str(broken))
    write_tar(broken, [("1.png", picture(1)), ("1.cls", b"cat")])
    with pytest.raises(ValueError, match=r"broken\.tar: 1\.cls holds b'cat'; expected a class number"):
        open_images(str(broken))


def test_a_shard_cut_after_indexing(tmp_path):
    folder = shards_of(tmp_path / "shards", [3])
    source = open_images(str(folder))
    (folder / "part-000.tar").write_bytes(b"")
    with pytest.raises(BadImageError, match=r"part-000\.tar: 0001\.png: unreadable"):
        source[1]


def test_miniature():
    source = open_images("miniature:40")
    assert len(source) == 40 and len(list(source)) == 40
    assert open_images("miniature:40:3")[7][0].tobytes() == source[7][0].tobytes()
    assert open_images("miniature:40:4")[7][0].tobytes() != source[7][0].tobytes()
    assert source.seed not in (writers.TRAIN_SEED, writers.HELD_OUT_SEED, make_vit.FRESH_WORLD, make_vit.world(0, 4))
    tied = 0
    for row, (image, label) in enumerate(source):
        drawn = scenes.scene(source.seed, row)
        assert np.array_equal(image, drawn.image)
        large = [thing for thing in drawn.things if thing.size == "large"] or drawn.things
        tied += len(large) > 1
        assert source.classes[label] == large[0].name
    assert tied > 5


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("miniature:none", "expected miniature:COUNT"),
        ("miniature:0", "expected miniature:COUNT"),
        ("trian", "nothing at .*: did you mean train"),
        ("nowhere/at/all", "nothing at .*; expected a folder"),
        ("empty", r"no images in .*looked for \*\.jpg, .*it is empty"),
        ("texts", "no images in .*it holds a.txt, b.txt"),
        ("texts/a.txt", "is neither a folder nor a .tar"),
        ("both", "tar shards as well as image files"),
        ("splits", "holds the splits train, val; expected one"),
        ("tars/no-images.tar", "no images in 1 tar shards"),
        ("tars/x-{00..03}.tar", r"2 of the 4 shards .* x-02\.tar, x-03\.tar; correct"),
        ("tars/x-{00,01}.tar", "cannot read the braces"),
        ("tars/x-{03..01}.tar", "cannot read the braces"),
        ("tars/x-{00..01.tar", "cannot read the braces"),
    ],
)
def test_wrong_places(tmp_path, place, message):
    for name in ("train/a/1.png", "both/1.png", "splits/train/1.png", "splits/val/1.png", "texts/a.txt", "texts/b.txt"):
        write(tmp_path / name, picture(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "tars").mkdir()
    for name in ("both/1.tar", "tars/x-00.tar", "tars/x-01.tar", "tars/no-images.tar"):
        write_tar(tmp_path / name, [("1.txt", b"")])
    with pytest.raises(ValueError, match=message):
        open_images(place if place.startswith("miniature") else str(tmp_path / place))


def test_an_unwritable_cache(tmp_path, monkeypatch):
    write(tmp_path / "file", b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="point XDG_CACHE_HOME"):
        open_images(str(shards_of(tmp_path / "shards", [1])))


def test_order(tmp_path):
    folder = tmp_path / "folder"
    for number in range(30):
        write(folder / f"{number}.png", b"")
    counts = [3, 1, 0, 5] * 10
    tars = open_images(str(shards_of(tmp_path / "shards", counts)))
    for source in (open_images(str(folder)), open_images("miniature:50"), tars):
        order = source.order((7, 1))
        assert order.dtype == np.int64 and sorted(order) == list(range(len(source)))
        assert np.array_equal(order, source.order((7, 1)))
        assert not np.array_equal(order, source.order((7, 2))) and not np.array_equal(order, np.sort(order))
    shard_of = np.repeat(np.arange(len(counts)), counts)[tars.order(3)]
    last = {shard: position for position, shard in enumerate(shard_of)}
    first = {shard: position for position, shard in reversed(list(enumerate(shard_of)))}
    at_once = [sum(first[s] <= position <= last[s] for s in first) for position in range(len(shard_of))]
    assert 4 < max(at_once) <= SHARDS_AT_ONCE
    assert len(set(shard_of[:10].tolist())) > 4  # neighbours come from several shards
