"""Image bombs, foreign formats and paths that lead out are refused wherever images are opened."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_bombs import SIDE, bomb
from PIL import Image, ImageFile

from eval.probing.data import DATASETS, read_pair
from eval.report.gallery import picture
from prismatic.data.conversation_dataset import BadImageError, ConversationDataset, RefusedPathError
from prismatic.data.image_datasets import open_images
from prismatic.data.images import TrainingImages, evaluation_transform
from prismatic.data.verify import check_images, check_rows
from vision_backbones.safe_images import leads_out, open_image


def training_rows(root: Path) -> ConversationDataset:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    (root / "rows.json").write_text(json.dumps([{"id": "r", "image": "bomb.png", "conversations": turns}]))
    return ConversationDataset(root / "rows.json", root)


def tar_of(root: Path) -> str:
    with tarfile.open(root / "x.tar", "w") as tar:
        tar.add(root / "bomb.png", "bomb.png")
    return str(root / "x.tar")


def probe_pair(root: Path):
    Image.new("L", (8, 8)).save(root / "map.png")
    return read_pair(DATASETS["miniature"], root / "bomb.png", root / "map.png")


OPENERS = {
    "training rows": lambda root: training_rows(root).load_image(0),
    "folder": lambda root: open_images(str(root))[0],
    "tar shard": lambda root: open_images(tar_of(root))[0],
    "augmented": lambda root: TrainingImages(open_images(str(root)), evaluation_transform("clip-vit-b"), seed=0)[0],
    "patch probe": probe_pair,
    "report": lambda root: picture({}, [], root / "bomb.png"),
}


@pytest.mark.parametrize("side", [SIDE, 10_000], ids=["beyond Pillow's error", "Pillow only warns"])
@pytest.mark.parametrize("path", OPENERS)
def test_bombs_are_refused_at_once(path, side, tmp_path, monkeypatch):
    """Before a pixel of them is decoded."""
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    assert (tmp_path / "bomb.png").stat().st_size < 2000
    decode, decoded = ImageFile.ImageFile.load, []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.filename) or decode(self))
    tracemalloc.start()
    try:
        with pytest.raises((BadImageError, Image.DecompressionBombError), match="decompression bomb"):
            OPENERS[path](tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert not [name for name in decoded if "bomb" in str(name)]


def test_verify_counts_bombs(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    for found in (check_rows(training_rows(tmp_path), 0), check_images(open_images(str(tmp_path)), 0)):
        assert found.counts["unreadable images"] == 1 and "bomb" in found.problems["unreadable images"][0]


def test_training_may_skip_bombs(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    examples = TrainingImages(
        open_images(str(tmp_path)), evaluation_transform("clip-vit-b"), seed=0, on_bad_image="skip"
    )
    assert examples[0] is None


def test_the_limit_is_pillows(tmp_path, monkeypatch):
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    for limit, fits in ((100, True), (99, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        try:
            with open_image(tmp_path / "a.png") as image:
                assert image.size == (10, 10) and fits
        except Image.DecompressionBombError:
            assert not fits


@pytest.mark.parametrize("kind", ["EPS", "PSD", "FITS", "PDF", "SGI", "ICO"])
def test_other_formats_are_refused_whatever_they_are_called(kind, tmp_path):
    rgb = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
    content = io.BytesIO()
    if kind in ("PSD", "FITS"):
        content.write(b"8BPS" + bytes(40) if kind == "PSD" else b"SIMPLE  =                    T" + bytes(2850))
    else:
        rgb.save(content, kind)
    (tmp_path / "bomb.png").write_bytes(content.getvalue())
    with pytest.raises(BadImageError, match="cannot identify image file"):
        training_rows(tmp_path).load_image(0)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_usual_formats_are_opened(kind, tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a", kind)
    with open_image(tmp_path / "a") as image:
        assert image.convert("RGB").size == (16, 16)


OUT = [
    "../../etc/passwd",
    "a/../b",
    "/etc/passwd",
    "..\\..\\secret.png",
    "a\\..\\b.png",
    "\\\\host\\share",
    "a\0b",
    "..",
]


@pytest.mark.parametrize("path", OUT)
def test_paths_that_lead_out(path, tmp_path):
    assert leads_out(path)
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "r", "image": path, "conversations": turns}]))
    with pytest.raises(RefusedPathError, match="row 0 .*refused"):
        ConversationDataset(tmp_path / "rows.json", tmp_path).load_image(0)


@pytest.mark.parametrize("path", ["a.png", "a/b..png", "a/...", "a b/c;d.png", "größe ✓.png", "./a.png", "..a/b"])
def test_paths_that_do_not(path):
    assert not leads_out(path)


def test_tars_hold_no_links_devices_or_endless_labels(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "good.png", "../../0.png")  # a name only: nothing is written by it
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE), 1):
            info = tarfile.TarInfo(f"{number}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        label = tarfile.TarInfo("0.cls")
        label.size = 50_000_000
        tar.addfile(label, io.BytesIO(bytes(label.size)))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"0\.cls holds .*expected a class number"):
        open_images(str(tmp_path / "x.tar"))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        tar.add(tmp_path / "good.png", "../../0.png")
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    source = open_images(str(tmp_path / "y.tar"))
    assert len(source) == 1 and source[0][0].size == (4, 4)
