"""What is kept of a probe, read back in fresh objects: it scores as it did, and what is not right is said."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from golden_cases import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from small_probes import train_probes

from eval.probing.data import PatchExamples, find_root, get_dataset, list_pairs, read_pair
from eval.probing.evaluate import evaluate, scores_of
from eval.probing.features import Split
from eval.probing.metrics import jsonable
from eval.probing.saved import ABOUT, WEIGHTS, load_probe
from prismatic.miniature.scenes import scene
from vision_backbones.files import describe
from vision_backbones.weights import ASSETS

WORLD = "miniature:20:7"
CASES = {  # what is kept, beyond the scores: a mean of prefix tokens, two precisions, the backbone itself
    "union": "--backbone miniature-aligned",
    "global-union": "--labels global-union --head linear",
    "majority": "--labels majority --precision bf16 --head mlp --skip_blocks 2",
    "full": "--full_finetune true --cache off --head transformer-separate",
}
SMALL = f"--data_root {WORLD} --batch_size 8 --epochs 2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every case, in one folder."""
    root = tmp_path_factory.mktemp("probes")
    for name, arguments in CASES.items():
        train_probes(root, name, f"{SMALL} {arguments}")
    return root


def validation(probe, kind):
    dataset = get_dataset("miniature")
    pairs = list_pairs(dataset, find_root(dataset, WORLD), "val")
    return pairs, Split(PatchExamples(dataset, pairs, probe.backbone.spec, probe.backbone.patch, [kind]), 0)


@pytest.mark.parametrize("name", CASES)
def test_a_probe_that_is_read_back_scores_as_its_run_says(name, runs):
    saved = load_probe(runs / name)
    (row,) = json.loads((runs / name / "results.json").read_text())["probes"]
    assert (saved.backbone, saved.labels) == (row["backbone"], row["labels"])
    assert (saved.dataset, saved.classes) == ("miniature", get_dataset("miniature").classes)
    _, split = validation(saved.probe, saved.labels)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision="bf16" if name == "majority" else "no", cpu=True)
    found = evaluate(saved.probe, split, [range(7)], saved.labels, accelerator)
    assert found["loss"] == row["last"]["loss"], "the last epoch's, to the bit"
    assert jsonable(scores_of(found, saved.labels)) == row["last"]["scores"]
    assert json.loads((runs / name / saved.backbone / saved.labels / ABOUT).read_text())["epoch"] == 2


@pytest.mark.parametrize("name", CASES)
def test_probabilities_of_images_find_what_the_run_counted(name, runs):
    """From the images themselves, with counts by plain comparison."""
    saved = load_probe(runs / name)
    pairs, split = validation(saved.probe, saved.labels)
    found = saved.probabilities([read_pair(get_dataset("miniature"), *pair)[0] for pair in pairs])
    rows, columns = saved.grid
    assert saved.grid == ((1, 1) if name == "global-union" else (6, 6))
    assert found.shape == (7, rows, columns, 17) and 0 <= found.min() and found.max() <= 1
    if name == "majority":
        torch.testing.assert_close(found.sum(-1), torch.ones(7, 6, 6))
        marks = torch.nn.functional.one_hot(found.argmax(-1), 17).bool()
    else:
        marks = found > 0.5
    with (runs / name / saved.backbone / saved.labels / "classes.csv").open() as file:
        header, *lines = (line.rstrip().split(",") for line in file)
    assert marks.sum((0, 1, 2)).tolist() == [int(line[header.index("last_found")]) for line in lines]
    assert 10 < marks.sum() < marks.numel() / 2, "they are neither all nor nothing"


def test_pixels_are_those_of_the_centred_square(runs):
    saved = load_probe(runs / "union")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))
    middle = wide.crop((16, 0, 64, 48))
    assert np.array_equal(np.asarray(saved.square(wide)), np.asarray(middle))
    assert torch.equal(*(saved.probabilities([image]) for image in (wide, middle)))
    grey = Image.new("L", (10, 30), 77)
    assert saved.square(grey).mode == "RGB" and saved.square(grey).size == (48, 48)
    with pytest.raises(ValueError, match="no images"):
        saved.probabilities([])


def test_what_is_written(runs):
    folder = runs / "full" / "miniature" / "union"
    about = json.loads((folder / ABOUT).read_text())
    assert about["file"] == describe(folder / WEIGHTS) and about["full_finetune"] and about["head"].endswith("separate")
    assert {name.partition(".")[0] for name in load_file(folder / WEIGHTS)} == {"head", "backbone"}
    frozen = runs / "majority" / "miniature" / "majority"
    assert {name.partition(".")[0] for name in load_file(frozen / WEIGHTS)} == {"head"}
    assert json.loads((frozen / ABOUT).read_text())["skip_blocks"] == 2


@pytest.fixture
def copy(runs, tmp_path):
    """A probe of its own, to damage."""
    return shutil.copytree(runs / "union" / "miniature-aligned", tmp_path / "run" / "miniature-aligned") / "union"


def test_where_there_is_no_probe_or_more_than_one(copy):
    run = copy.parent.parent
    with pytest.raises(ValueError, match="no folder .*unoin: did you mean union"):
        load_probe(copy.parent / "unoin")
    with pytest.raises(ValueError, match="no folder .*: give a run of"):
        load_probe(run / "nowhere" / "there")
    shutil.copytree(copy, copy.with_name("majority"))
    with pytest.raises(ValueError, match=r"2 probes: give one of .*aligned/majority, .*aligned/union"):
        load_probe(run)
    shutil.rmtree(copy.with_name("majority"))
    assert load_probe(run).labels == load_probe(str(copy.parent)).labels == "union"
    (copy / ABOUT).unlink()  # as it was before heads were kept
    with pytest.raises(ValueError, match="by an earlier version, which kept scores but no head: probe again"):
        load_probe(run)
    (copy / "outcome.json").unlink()
    with pytest.raises(ValueError, match="holds no head.json"):
        load_probe(copy)


def test_the_example_of_the_docs(runs, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "probe.md").read_text(), re.S)
    shutil.copytree(runs / "full" / "miniature", tmp_path / "runs" / "docs-probe" / "miniature")
    image = Image.fromarray(scene(6, 0).image)
    image.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    found = load_probe(runs / "full").probabilities([image])[0] > 0.5
    names = get_dataset("miniature").classes
    assert capsys.readouterr().out.splitlines() == [
        f"row {row}, column {column}: {names[number]}" for row, column, number in np.argwhere(found.numpy())
    ]


def rewrite(folder, **changes):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | changes))


def test_damage_is_named(copy):
    weights, whole, about = copy / WEIGHTS, (copy / WEIGHTS).read_bytes(), (copy / ABOUT).read_text()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (whole[:-100], bytes(flipped)):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="head.safetensors is damaged: it is not as it was written"):
            load_probe(copy)
    tensors = load_file(copy / WEIGHTS) | {"head.head.bias": torch.full((17,), float("nan"))}
    save_file(tensors, weights)
    rewrite(copy, file=describe(weights))
    with pytest.raises(ValueError, match="head.head.bias has values that are infinite or not a number"):
        load_probe(copy)
    save_file({"head.bias": torch.zeros(17)}, weights)
    rewrite(copy, file=describe(weights))
    with pytest.raises(ValueError, match="belongs to a different probe"):
        load_probe(copy)
    weights.unlink()
    with pytest.raises(ValueError, match="head.safetensors cannot be read"):
        load_probe(copy)
    for content, message in (
        ("{", "head.json cannot be read"),
        ("{}", "it has no backbone, spec"),
        (about.replace('"skip_blocks": 0', '"skip_blocks": "0"'), "skip_blocks is of another type"),
        (about.replace('"labels": "union"', '"labels": "unoin"'), "did you mean union"),
        (about.replace('"arch"', '"architecture"'), "its spec cannot be read"),
    ):
        (copy / ABOUT).write_text(content)
        with pytest.raises(ValueError, match=message):
            load_probe(copy)


def test_a_backbone_that_changed_since_is_not_probed(copy, tmp_path, monkeypatch):
    moved = shutil.copy(ASSETS / "miniature-aligned.safetensors", tmp_path / "mine.safetensors")
    about = json.loads((copy / ABOUT).read_text())
    rewrite(copy, spec=about["spec"] | {"weights": str(moved)})
    assert load_probe(copy).backbone == "miniature-aligned", "the same weights elsewhere"
    shutil.copy(ASSETS / "miniature.safetensors", moved)
    with pytest.raises(ValueError, match="weights of miniature-aligned are not those that the probe .* was trained on"):
        load_probe(copy)
    moved.unlink()
    with pytest.raises(ValueError, match="no weights file .*mine.safetensors"):
        load_probe(copy)
