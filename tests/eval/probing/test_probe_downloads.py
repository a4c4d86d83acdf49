"""The data sets of patch probing, from a server on this machine that holds archives laid out as the real ones."""

import io
import sys

import numpy as np
import pytest
from evaluation_folders import zipped
from file_server import file_server
from PIL import Image

from eval.__main__ import main
from eval.prepare import needs, prepare, verify
from eval.probing.data import find_root, get_dataset, list_pairs, read_pair


def picture(kind, value=0):
    file = io.BytesIO()
    values = np.full((8, 12), value, np.uint8)
    Image.fromarray(values).convert("RGB" if kind == "JPEG" else "L").save(file, kind)
    return file.getvalue()


ARCHIVES = {
    "train2017.zip": {f"train2017/{n:012}.jpg": picture("JPEG") for n in (9, 25)},
    "val2017.zip": {"val2017/000000000139.jpg": picture("JPEG")},
    "stuffthingmaps_trainval2017.zip": {
        "train2017/000000000009.png": picture("PNG", 181), "train2017/000000000025.png": picture("PNG", 255),
        "val2017/000000000139.png": picture("PNG", 90),
    },
    "ADEChallengeData2016.zip": {
        f"ADEChallengeData2016/{part}/{split}/ADE_{short}_00000001.{kind}": content
        for part, kind, content in (("images", "jpg", picture("JPEG")), ("annotations", "png", picture("PNG", 150)))
        for split, short in (("training", "train"), ("validation", "val"))
    } | {"ADEChallengeData2016/objectInfo150.txt": b"Idx\n"},
}  # fmt: skip


@pytest.fixture
def entries(monkeypatch):
    """What is downloaded for a data set, from here."""
    with file_server() as running:
        running.files |= {f"/{name}": zipped(content) for name, content in ARCHIVES.items()}

        def of(name):
            made = [entry | {"urls": [f"{running.url}/{url.rpartition('/')[2]}" for url in entry["urls"]]}
                    for entry in needs(name)]  # fmt: skip
            return made

        yield of


@pytest.mark.parametrize(
    ("name", "where", "sizes"),
    [
        ("coco", "coco", {"train": 2, "val": 1}),
        ("coco-things", "coco", {"train": 2, "val": 1}),
        ("ade20k", "ade20k", {"train": 1, "val": 1}),
    ],
)
def test_what_is_prepared_is_what_the_probe_reads(entries, tmp_path, capsys, name, where, sizes):
    assert prepare(name, tmp_path, entries(name)) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"prismatic probe --dataset {name} --data_root {tmp_path / where}"
    dataset, root = get_dataset(name), find_root(get_dataset(name), str(tmp_path / where))
    pairs = {split: list_pairs(dataset, root, split, partial=True) for split in ("train", "val")}
    assert {split: len(found) for split, found in pairs.items()} == sizes
    for found in pairs.values():
        for pair in found:
            read_pair(dataset, *pair)
    assert verify(name, tmp_path) == 1  # all are sound, but there should be more
    said = capsys.readouterr().out
    assert "train has" in said and "val has" in said and said.endswith(f"{name}: 2 problems\n")


def test_a_label_map_that_changed_is_found(entries, tmp_path, capsys):
    prepare("ade20k", tmp_path, entries("ade20k"))
    (tmp_path / "ade20k/annotations/training/ADE_train_00000001.png").write_bytes(picture("PNG", 200))
    assert verify("ade20k", tmp_path) == 1
    assert "has the values 200, which are not classes of ade20k" in capsys.readouterr().out


def test_names_that_are_nearly_right(tmp_path, capsys, monkeypatch):
    for asked, meant in (("ade20", "ade20k"), ("coco-thing", "coco-things"), ("refcocco", "refcoco")):
        monkeypatch.setattr(sys, "argv", ["eval", "prepare", asked, "--data_root", str(tmp_path)])
        with pytest.raises(SystemExit) as end:
            main()
        error = capsys.readouterr().err
        assert end.value.code == 2 and f"did you mean {meant}" in error and error.count("\n") == 1
