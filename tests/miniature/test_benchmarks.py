"""The five benchmarks on disk: genuine formats, right answers, even ones."""

import ast
import json
import pickle
import re
from collections import Counter

import jsonlines
import numpy as np
import pytest
from PIL import Image
from test_spatial import centre, meant

from eval.data.selection import check_counts, check_images
from eval.task import Choose, Example, Generate
from eval.tasks import get_task
from prismatic.data.image_datasets import MINIATURE_SEED
from prismatic.miniature import make_vit
from prismatic.miniature.benchmarks import BENCHMARK_SEED, WRITERS, miniature_benchmarks, write_benchmarks
from prismatic.miniature.language import box_text, questions
from prismatic.miniature.llava_writer import HELD_OUT_SEED, TRAIN_SEED
from prismatic.miniature.newer_benchmarks import NEWER_WRITERS
from prismatic.miniature.scenes import CLASSES, IMAGE_SIZE, scene
from prismatic.miniature.segmentation import SEEDS

COUNT = 48


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks") / "root", COUNT)


def things(benchmark, index):
    number = list(WRITERS).index(benchmark)
    return scene(BENCHMARK_SEED + number, index, 2 + index % 3, 2 + index % 3).things


def same_picture(path, benchmark, index):
    number = list(WRITERS).index(benchmark)
    expected = scene(BENCHMARK_SEED + number, index, 2 + index % 3, 2 + index % 3).image
    stored = np.asarray(Image.open(path).convert("RGB").resize((IMAGE_SIZE,) * 2, Image.Resampling.BOX)).astype(int)
    return np.abs(stored - expected).mean() < 4


def test_worlds_are_held_out():
    backbones = {make_vit.world(seed, most) for seed in range(1000) for most in (1, 4)} | {make_vit.FRESH_WORLD}
    training = {TRAIN_SEED, HELD_OUT_SEED, MINIATURE_SEED, *SEEDS.values()} | backbones
    assert training.isdisjoint(range(BENCHMARK_SEED, BENCHMARK_SEED + len(WRITERS | NEWER_WRITERS)))


@pytest.mark.parametrize(
    ("name", "by", "style"), [("refcoco", "unc", 0), ("refcoco+", "unc", 1), ("refcocog", "umd", 2)]
)
def test_refcoco(root, name, by, style):
    content = json.loads((root / "refcoco" / name / "instances.json").read_text())
    images = {i["id"]: i for i in content["images"]}
    boxes = {a["id"]: a for a in content["annotations"]}
    refs = pickle.loads((root / "refcoco" / name / f"refs({by}).p").read_bytes())
    sent_ids = [s["sent_id"] for r in refs for s in r["sentences"]]
    assert sent_ids == list(range(len(sent_ids))) and len(sent_ids) > len(refs) > COUNT
    assert {r["split"] for r in refs} == ({"val", "testA", "testB"} if by == "unc" else {"val", "test"})
    for ref in refs:
        image, annotation = images[ref["image_id"]], boxes[ref["ann_id"]]
        index = ref["image_id"] - 800_000
        assert annotation["image_id"] == ref["image_id"] and image["file_name"] != ref["file_name"]
        assert image["file_name"] == f"COCO_train2014_{ref['image_id']:012d}.jpg"
        assert (image["width"], image["height"]) == (IMAGE_SIZE, IMAGE_SIZE)
        assert ref["sent_ids"] == [s["sent_id"] for s in ref["sentences"]]
        x, y, w, h = annotation["bbox"]
        for sentence in ref["sentences"]:
            (thing,) = meant(sentence["sent"], things("refcoco", index))
            assert (x, y, x + w, y + h) == thing.box
            where = [word in sentence["sent"].split() for word in ("left", "right", "top", "bottom", "above", "below")]
            assert any(where) == (style != 1) and ("the" in sentence["tokens"] or style != 2)
    assert all(
        same_picture(root / "refcoco/train2014" / f["file_name"], "refcoco", i) for i, f in enumerate(images.values())
    )


def test_ocid_ref(root):
    rows = json.loads((root / "ocid-ref/val_expressions.json").read_text())
    levels = Counter()
    for key, row in rows.items():
        assert key.isdigit() and row["tokens"] == row["sentence"].split() and 0 <= row["take_id"] <= 20
        (thing,) = meant(row["sentence"], things("ocid-ref", row["scene_id"]))
        box = ast.literal_eval(row["bbox"])
        assert isinstance(row["bbox"], str)
        assert np.array(box) / [640, 480, 640, 480] == pytest.approx(np.array(thing.box) / IMAGE_SIZE, abs=0.002)
        path = root / "ocid-ref/OCID-dataset" / row["scene_path"]
        assert "/rgb/" in row["scene_path"] and row["scene_path"].startswith(row["sequence_path"])
        assert Image.open(path).size == (640, 480)
        level = sum(row["take_id"] >= start for start in (10, 17))
        assert level == len(things("ocid-ref", row["scene_id"])) - 2
        levels[level] += 1
    assert min(levels[level] for level in range(3)) > 10
    assert len({row["scene_path"] for row in rows.values()}) == COUNT
    assert same_picture(path, "ocid-ref", row["scene_id"])


def test_tallyqa(root):
    rows = json.loads((root / "tallyqa/test.json").read_text())
    assert [r["question_id"] for r in rows] == sorted({r["question_id"] for r in rows})
    for row in rows:
        index = row["image_id"] - 92_300_000
        noun = row["question"].removeprefix("How many ").removesuffix("?").replace(" are there", "")
        noun = noun.replace(" are ", " ").replace(" half", "")
        assert len(meant(noun, things("tallyqa", index))) == row["answer"]
        assert row["image"].endswith(f"/{row['image_id'] - 90_000_000}.jpg")
    assert same_picture(root / "tallyqa" / row["image"], "tallyqa", index)
    shares = Counter(r["answer"] for r in rows)
    assert {r["issimple"] for r in rows} == {True, False} and max(shares.values()) < 0.4 * len(rows)


def test_vsr(root):
    with jsonlines.open(root / "vsr/test.jsonl") as reader:
        rows = list(reader)
    assert sum(r["label"] for r in rows) * 2 == len(rows) > COUNT
    for row in rows:
        index = int(row["image"].removesuffix(".jpg")) - 500_000
        shown = things("vsr", index)
        (one,), (two,) = meant(row["subj"], shown), meant(row["obj"], shown)
        down, right = np.array(centre(two)) - centre(one)
        fits = {"to the left of": right > 0, "to the right of": right < 0, "above": down > 0, "below": down < 0}
        assert row["caption"] == f"The {one.name} is {row['relation']} the {two.name}."
        assert fits[row["relation"]] == row["label"]
        votes = ast.literal_eval(row["vote_true_validator_id"]), ast.literal_eval(row["vote_false_validator_id"])
        assert (len(votes[0]) > len(votes[1])) == row["label"]
    assert same_picture(root / "vsr/images" / row["image"], "vsr", index)


def test_ai2d(root):
    inside = root / "ai2d/ai2d"
    tested = [int(line) for line in (root / "ai2d/ai2d_test_ids.csv").read_text().split()]
    assert tested == list(range(1, COUNT, 2))
    correct, letters = Counter(), 0
    for index in range(COUNT):
        content = json.loads((inside / f"questions/{index}.png.json").read_text())
        labels = json.loads((inside / f"annotations/{index}.png.json").read_text())["text"].values()
        assert content["imageName"] == f"{index}.png"
        assert {label["value"]: label["rectangle"] for label in labels}.keys() <= set(CLASSES)
        for number, (text, row) in enumerate(content["questions"].items()):
            assert row["questionId"] == f"{index}.png-{number}" and len(set(row["answerTexts"])) == 4
            correct[row["correctAnswer"]] += 1
            if row["abcLabel"]:
                letters += 1
                (label,) = [label for label in labels if label["value"] in text]
                assert label["replacementText"] == row["answerTexts"][row["correctAnswer"]]
                (thing,) = meant(label["value"], things("ai2d", index))
                assert np.mean(label["rectangle"], axis=0).tolist() == [thing.x, thing.y]
    assert max(correct.values()) - min(correct.values()) <= 1 and letters > 5
    assert same_picture(inside / "images" / f"{index}.png", "ai2d", index)


def test_the_same_everywhere_and_written_once(root, tmp_path, monkeypatch):
    again = write_benchmarks(tmp_path / "again", COUNT)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)
    stamp = (root / "vsr/test.jsonl").stat().st_mtime_ns
    assert write_benchmarks(root, COUNT) == root and (root / "vsr/test.jsonl").stat().st_mtime_ns == stamp
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert miniature_benchmarks(2).is_relative_to(tmp_path) and (miniature_benchmarks(2) / "ai2d").is_dir()


EXPECTED = {"refcoco": Generate, "ocid-ref": Generate, "tallyqa": Choose, "vsr": Choose, "ai2d": Choose}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_tasks_read_it(root, name):
    task = get_task(name)
    for split in task.num_examples:
        if (name, split) in (("ocid-ref", "test"), ("vsr", "dev")):
            continue  # not written
        examples = task.read(root, split)
        assert len(examples) >= COUNT / 4 and isinstance(task.answer(examples[0]), EXPECTED[name])
        check_counts(task, examples, allow_partial=True)
        check_images(task, examples, root)
        for example in examples:
            if EXPECTED[name] is Generate:
                number = re.search(r"seq(\d+)/|_(\d+)\.jpg", example.image)
                index = int(number[1]) if number[1] else int(number[2]) - 800_000
                (thing,) = meant(example.question, things(name, index))
                assert str(example.answer) == box_text(thing)
                assert task.scorer.judge(vars(example) | {"output": box_text(thing)})["score"] == 1
    subsets = {"refcoco": 3, "ocid-ref": 3, "tallyqa": 2, "vsr": 1, "ai2d": 2}
    assert len({e.subset for e in task.read(root, task.split)}) == subsets[name]


def test_letters_can_be_painted(root):
    task = get_task("ai2d-abc")
    examples = task.read(root, "test")
    assert examples
    for example in examples:
        painted = task.image_of(Image.open(root / example.image), example)
        assert painted.size == (IMAGE_SIZE, IMAGE_SIZE)


def test_training_asks_as_the_tasks_do():
    """The user's turns of the training set are those of the benchmarks, word for word."""
    asked = {kind: [] for kind in ("box", "statement", "tally", "choice")}
    for index in range(60):
        for q in questions(scene(TRAIN_SEED, index).things, np.random.default_rng(index)):
            asked.get(q.kind, []).append(q)
    for q in asked["box"]:
        inside = q.text.split('"')[1]
        assert q.text == get_task("refcoco").prompt(Example("", "", inside, None))
    for q in asked["statement"]:
        inside = q.text.split("? ", 1)[1].split("\n")[0]
        assert q.text == get_task("vsr").prompt(Example("", "", inside, None)) and q.answer in ("True", "False")
    for kind, name, count in (("tally", "tallyqa", 16), ("choice", "ai2d", 4)):
        for q in asked[kind]:
            first, *options, _ = q.text.split("\n")
            choices = [option.split(". ", 1)[1] for option in options]
            assert len(choices) == count
            assert q.text == get_task(name).prompt(Example("", "", first, None, info={"choices": choices}))
            assert q.answer in get_task(name).answer(Example("", "", "", None)).options
    assert all(len(found) > 20 for found in asked.values())
