"""Reading COCO-Stuff, ADE20K and the miniature world: genuine pairs, and copies that are not as they should be."""

import dataclasses

import forked
import numpy as np
import pytest
import torch
from golden_cases import requires_samples, samples_dir
from PIL import Image

from eval.probing import data
from eval.probing.labels import reduce_labels, unpack
from prismatic.data.conversation_dataset import BadImageError
from prismatic.miniature.scenes import CLASSES, scene
from prismatic.miniature.segmentation import SEEDS, write_ade20k
from vision_backbones import get_spec
from vision_backbones.registry import resolve_spec

SPEC = resolve_spec("miniature")
GENUINE = [("coco", "coco"), ("coco-things", "coco"), ("ade20k", "ade20k")]


def examples(dataset, root, split="val", kinds=("union",), spec=SPEC, patch=8, partial=True):
    pairs = data.list_pairs(dataset, root, split, partial)
    return data.PatchExamples(dataset, pairs, spec, patch, list(kinds))


@pytest.fixture
def world(tmp_path):
    """A small copy of the miniature world."""
    return write_ade20k(tmp_path / "world", 3, 4)


@pytest.fixture
def miniature():
    return data.get_dataset("miniature")


def folder(root, part, split="validation"):
    return root / part / split


@requires_samples
@pytest.mark.parametrize(("name", "where"), GENUINE)
@pytest.mark.parametrize("split", ["train", "val"])
def test_genuine_pairs(name, where, split):
    dataset = data.get_dataset(name)
    root = data.find_root(dataset, str(samples_dir() / where))
    found = examples(dataset, root, split, spec=resolve_spec("clip-vit-b"), patch=16)
    for row, example in enumerate(found):
        image, values = found.square(row)
        stored = np.asarray(Image.open(found.pairs[row][1]))
        side = min(stored.shape)
        top, left = ((length - side) // 2 for length in stored.shape)
        square = stored[top : top + side, left : left + side]
        inside = set(np.unique((square.astype(int) + 1) % 256 if where == "coco" else square))
        inside = {0 if name == "coco-things" and value > 91 else value for value in inside}
        assert set(np.unique(values)) <= inside and values.shape == (224, 224) == image.size
        present = unpack(example["union"], len(dataset.classes), "union").bool().numpy()
        assert set(np.flatnonzero(present.any((0, 1)))) | {0} == set(np.unique(values)) | {0}
        assert example["pixel_values"].shape == (3, 224, 224)


@requires_samples
def test_known_labels_of_a_genuine_image():
    """Values are COCO-Stuff ids less 1; the samples' notes say which classes a drawn image holds."""
    dataset = data.get_dataset("coco")
    found = examples(dataset, samples_dir() / "coco", "train")
    _, values = found.square(0)
    named = {dataset.classes[i] for i in np.unique(values)}
    assert named <= {"person", "dog", "grass", "sky-other", "unlabeled"} and len(named) > 1


@requires_samples
def test_another_encoding_of_coco_stuff_is_noticed(tmp_path):
    """The stuff challenge's maps hold ids from 92 to 183, one more than the probe's values."""
    for path in (samples_dir() / "coco" / "stuff" / "segmentations_examples").glob("*.png"):
        stored = Image.open(path)
        image = tmp_path / f"{path.stem}.jpg"
        Image.new("RGB", stored.size).save(image)
        if np.asarray(stored).max() > 181:
            with pytest.raises(BadImageError, match="not classes of coco"):
                data.read_pair(data.get_dataset("coco"), image, path)


def test_the_miniature_world_is_what_was_drawn(world, miniature):
    found = examples(miniature, world, kinds=("union", "majority", "global-union"))
    assert len(found) == 4 and miniature.classes[1:] == CLASSES
    for row in range(len(found)):
        drawn = scene(SEEDS["validation"], row)
        image, values = found.square(row)
        assert np.abs(np.asarray(image).astype(int) - drawn.image).mean() < 2, "JPEG of the highest quality"
        for thing in drawn.things:
            assert (
                values[drawn.instance_map() == drawn.things.index(thing) + 1] == CLASSES.index(thing.name) + 1
            ).all()
        assert (values[drawn.instance_map() == 0] == 0).all()
        whole = unpack(found[row]["global-union"], 17, "global-union").nonzero().flatten().tolist()
        assert set(whole) == {0, *(CLASSES.index(thing.name) + 1 for thing in drawn.things)}


def by_hand(label_map, patch, classes, kind):
    """The definition, patch by patch."""
    rows, columns = (side // patch for side in label_map.shape)
    union, majority = np.zeros((rows, columns, classes), bool), np.zeros((rows, columns), int)
    for i in range(rows):
        for j in range(columns):
            inside = label_map[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].flatten().tolist()
            owners = set(inside) - {0} or {0}
            union[i, j, list(owners)] = True
            majority[i, j] = min(set(inside), key=lambda c: (-inside.count(c), c))
    if kind == "global-union":
        seen = set(label_map[: rows * patch, : columns * patch].flatten().tolist())
        return np.isin(np.arange(classes), list(seen))
    return union if kind == "union" else majority


@pytest.mark.parametrize("kind", ["union", "majority", "global-union"])
@pytest.mark.parametrize(("size", "patch", "classes"), [((17, 26), 5, 4), ((32, 32), 16, 183), ((6, 6), 6, 2)])
def test_labels_by_their_definition(kind, size, patch, classes):
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.int16, np.int64):
        label_map = rng.integers(0, classes, size).astype(dtype)
        label_map[: size[0] // 2] = 0
        assert np.array_equal(reduce_labels(label_map, patch, classes, kind), by_hand(label_map, patch, classes, kind))


def test_one_pixel_is_enough_for_a_class_to_be_there():
    labels = np.zeros((8, 8), int)
    labels[5, 2] = 3
    assert reduce_labels(labels, 4, 4, "global-union").tolist() == [True, False, False, True]
    assert reduce_labels(labels, 4, 4, "union")[1, 0].tolist() == [False, False, False, True]
    assert reduce_labels(labels, 4, 4, "majority").tolist() == [[0, 0], [0, 0]]


def test_labels_that_cannot_be():
    with pytest.raises(ValueError, match="did you mean union"):
        reduce_labels(np.zeros((4, 4), int), 2, 3, "unoin")
    with pytest.raises(ValueError, match="labels are 0 to 3, expected 0 to 2"):
        reduce_labels(np.array([[0, 3], [0, 0]]), 2, 3, "union")
    with pytest.raises(ValueError, match="labels are -1"):
        reduce_labels(np.array([[0, -1], [0, 0]]), 2, 3, "majority")
    with pytest.raises(ValueError, match="holds no patch of 8"):
        reduce_labels(np.zeros((4, 9), int), 8, 3, "union")


def test_fused_backbones_see_each_part_normalised(world, miniature):
    fused = resolve_spec(get_spec("dinosiglip-vit-so-224px"))
    pixels = examples(miniature, world, spec=fused, patch=14)[0]["pixel_values"]
    assert pixels.shape == (6, 224, 224)
    means, stds = ([getattr(part, name) for part in fused.parts] for name in ("mean", "std"))
    raw = [pixels[3 * i : 3 * i + 3] * torch.tensor(stds[i])[:, None, None] for i in range(2)]
    raw = [raw[i] + torch.tensor(means[i])[:, None, None] for i in range(2)]
    torch.testing.assert_close(raw[0], raw[1], atol=1e-5, rtol=0)


def test_missing_files_are_listed(world, miniature, capsys):
    (folder(world, "annotations") / "ADE_val_00000002.png").unlink()
    (folder(world, "images") / "ADE_val_00000004.jpg").unlink()
    with pytest.raises(data.MissingPairsError) as caught:
        data.list_pairs(miniature, world, "val")
    assert "3 images, 3 label maps" in str(caught.value)
    assert [path.split("/")[-1] for path in caught.value.lacking] == ["ADE_val_00000002.png", "ADE_val_00000004.jpg"]
    for name in caught.value.lacking:
        assert name in str(caught.value)
    assert len(data.list_pairs(miniature, world, "train")) == 3


def test_other_files_do_not_disturb(world, miniature):
    (world / "annotations" / "instances_val2017.json").write_text("{}")
    (folder(world, "images") / ".DS_Store").write_text("")
    assert len(data.list_pairs(miniature, world, "val")) == 4


def test_the_official_number(world, miniature):
    official = dataclasses.replace(miniature, official={"train": 3, "val": 2_000})
    assert len(data.list_pairs(official, world, "train")) == 3
    with pytest.raises(ValueError, match="holds 4 pairs, miniature val has 2,000.*--partial true"):
        data.list_pairs(official, world, "val")
    assert len(data.list_pairs(official, world, "val", partial=True)) == 4


def test_where_nothing_is(tmp_path, world, miniature):
    with pytest.raises(ValueError, match="did you mean coco"):
        data.get_dataset("cocco")
    with pytest.raises(ValueError, match="no folder"):
        data.find_root(miniature, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"did you mean {world}"):
        data.find_root(miniature, str(tmp_path))
    with pytest.raises(ValueError, match="has no images/ and no annotations/"):
        data.find_root(miniature, str(world / "images" / "training"))
    with pytest.raises(ValueError, match="no folder .*train2017"):
        data.list_pairs(data.get_dataset("coco"), world, "train")
    with pytest.raises(ValueError, match="miniature:TRAIN:VAL"):
        data.find_root(miniature, "miniature:12")
    with pytest.raises(ValueError, match="--dataset miniature"):
        data.find_root(data.get_dataset("coco"), "miniature:12:3")
    for path in [*folder(world, "images").iterdir(), *folder(world, "annotations").iterdir()]:
        path.unlink()
    with pytest.raises(ValueError, match="holds no .jpg"):
        data.list_pairs(miniature, world, "val")


def spoil(world, what):
    image = folder(world, "images") / "ADE_val_00000001.jpg"
    values = folder(world, "annotations") / "ADE_val_00000001.png"
    stored = np.asarray(Image.open(values)).copy()
    if what == "size":
        Image.fromarray(stored[:40]).save(values)
    elif what == "range":
        stored[0, :2] = 17, 200
        Image.fromarray(stored).save(values)
    elif what == "colour":
        Image.fromarray(stored).convert("RGB").save(values)
    elif what == "image":
        image.write_bytes(image.read_bytes()[:200])
    else:
        values.write_text("no PNG")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("size", "00001.png is 48 x 40 pixels, its image .*00001.jpg is 48 x 48"),
        ("range", "has the values 17, 200, which are not classes of miniature"),
        ("colour", "mode RGB, expected 8 bits per pixel"),
        ("image", "00001.jpg: unreadable"),
        ("map", "00001.png: unreadable"),
    ],
)
def test_damaged_pairs(world, miniature, what, message):
    spoil(world, what)
    with pytest.raises(BadImageError, match=message):
        examples(miniature, world)[0]
    assert len(list(data.problems(miniature, world))) == 1


def test_palette_maps_are_read_by_their_indices(world, miniature):
    path = folder(world, "annotations") / "ADE_val_00000001.png"
    before = examples(miniature, world).square(0)[1]
    image = Image.open(path).copy()
    image.putpalette([255 - i // 3 for i in range(768)])
    image.save(path)
    assert Image.open(path).mode == "P"
    assert np.array_equal(examples(miniature, world).square(0)[1], before)


def test_check_on_the_command_line(world):
    command = ["-m", "eval.probing.data"]
    done = forked.run([*command, "miniature", str(world)])
    assert (done.returncode, done.stdout) == (0, "no problems\n")
    (folder(world, "annotations") / "ADE_val_00000002.png").unlink()
    done = forked.run([*command, "miniature", str(world)])
    assert done.returncode == 1 and "missing: " in done.stdout and "1 problems" in done.stdout
    done = forked.run([*command, "minature", str(world)])
    assert done.returncode == 1 and "did you mean miniature" in done.stderr
