"""Points in masks, boxes at several thresholds, and counts: small files of each format, and scores computed by hand."""

import json
import random

import numpy as np
import pytest
import torch
from accelerate import PartialState
from points_files import (
    HEIGHT,
    WIDTH,
    WRITERS,
    countbenchqa,
    pixmo_count,
    ref_l4,
    refspatial,
    region,
    where2place,
    where2place_table,
)
from spatial_files import png, write_parquet

from eval.data import embedded
from eval.data.selection import check_images, majority_share, without_area
from eval.generate_engine import load_engine
from eval.runner import Job, run_job
from eval.scoring.counting import first_count
from eval.scoring.points import find_pairs, find_places, packed, share_inside, unpacked
from eval.tasks import get_task
from eval.tasks.ref_l4 import class_of
from eval.tasks.where2place import HOW


def scored(key, root, outputs):
    """Records and metrics of these answers."""
    task = get_task(key)
    examples = task.read(root, task.split)
    check_images(task, examples, root)
    records = [json.loads(json.dumps(example.record())) | {"output": said} for example, said in
               zip(examples, outputs, strict=True)]  # fmt: skip
    records = [record | task.scorer.judge(record) for record in records]
    return records, task.scorer.summarise(records)


def close(metrics, by_hand):
    assert {name: metrics[name] for name in by_hand} == pytest.approx(by_hand)


def test_ref_l4(tmp_path):
    ref_l4(tmp_path)
    outputs = [
        "[0.1, 0.1, 0.2, 0.3]",  # exact: IoU 1
        "[0.0, 0.0, 0.256, 0.32]",  # 192 of 256 rows: IoU 0.75, which is not above 0.75
        "[0.5, 0.5, 0.564, 0.7133333333333334]",  # half the width: IoU 0.5, not above it
        "It is [0.2, 0.16, 0.7, 0.83]",  # no list as a whole
    ]
    records, metrics = scored("ref-l4", tmp_path, outputs)
    assert [r["subset"] for r in records] == ["small", "medium", "medium", "large"]
    assert [r["info"]["class"] for r in records] == ["o365_6", "o365_6", "o365_1", "refcoco_37"]
    assert [r["iou"] for r in records] == pytest.approx([1, 0.75, 0.5, 0])
    assert [r["score"] for r in records] == [1, 1, 0, 0]
    # Of ten thresholds 0.75 is above 0.5, 0.55, ..., 0.7: five.
    by_hand = {
        "accuracy": 2 / 4, "accuracy_0.75": 1 / 4, "accuracy_0.9": 1 / 4, "macc": (1 + 0.5) / 4, "mean_iou": 2.25 / 4,
        "parse_failures": 1 / 4, "lenient_accuracy": 3 / 4, "accuracy/small": 1, "accuracy/medium": 1 / 2,
        "accuracy/large": 0, "macc/medium": 0.25, "class_accuracy": (1 + 0 + 0) / 3, "class_macc": (1.5 / 2) / 3,
    }  # fmt: skip
    close(metrics, by_hand)
    assert records[1]["answer"] == [0, 0, 0.256, 256 / 600], "not rounded, as RefCOCO's are"
    assert [e.id for e in get_task("ref-l4:val").read(tmp_path, "val")] == ["0", "1"]
    prompt = get_task("ref-l4").prompt(get_task("ref-l4").read(tmp_path, "all")[0])
    assert prompt.endswith('region this sentence describes: "the thing number 0"')


def test_classes_of_ref_l4():
    assert [class_of(name) for name in ("o365_365", "refcoco_1", "refcoco_90", "refcoco_12")] == [
        "o365_365", "o365_1", "o365_227", "refcoco_12",
    ]  # fmt: skip
    for name in ("coco_1", "o365_x", "o365", ""):
        with pytest.raises(ValueError, match="expected one such as o365_12"):
            class_of(name)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [([0, 0, 0, 5], "in an image of 1000 x 600 pixels"), ([1001, 0, 5, 5], "in an image of 1000 x 600"),
     ([0, float("nan"), 5, 5], "is not a valid box"), ([1, 2, 3], "argument")],
)  # fmt: skip
def test_boxes_that_are_none(bbox, reason, tmp_path):
    ref_l4(tmp_path)
    path = tmp_path / "ref-l4/ref-l4-val.parquet"
    row = {"id": 5, "caption": "a", "bbox": bbox, "ori_category_id": "o365_1", "height": 600, "width": 1000,
           "file_name": "a.jpg"}  # fmt: skip
    write_parquet(path, [row | {"id": 4, "bbox": [1.0, 1.0, 5.0, 5.0]}, row], images=())
    with pytest.raises(ValueError, match=rf"ref-l4-val\.parquet: row 1 is not as expected .*{reason}"):
        get_task("ref-l4").read(tmp_path, "val")


def test_where2place(tmp_path):
    where2place(tmp_path)
    outputs = [
        "[(0.25, 0.25), (0.475, 0.7), (0.5, 0.5), (1.2, 0.3)]",  # (10, 5), (19, 14) in; (20, 10) beside; one off
        "(14, 10)",  # pixels; the mask is four fifths white there
        "there is no space",
    ]
    records, metrics = scored("where2place", tmp_path, outputs)
    assert [r["id"] for r in records] == ["7", "6", "5"] and [r["image"] for r in records][1].endswith("images/1.png")
    assert records[0]["points"] == [[10, 5], [19, 14], [20, 10], [48, 6]]
    assert [r["score"] for r in records] == pytest.approx([2 / 4, 204 / 255, 0], abs=0.02)
    assert metrics["accuracy"] == pytest.approx((0.5 + 0.8) / 3, abs=0.02) and metrics["parse_failures"] == 1 / 3
    assert records[0]["answer"] == {"within": [0.25, 0.25, 0.5, 0.75], "share": pytest.approx(0.125, abs=2e-3)}
    assert records[1]["answer"]["share"] == pytest.approx(0.1, abs=2e-3)
    task = get_task("where2place")
    assert task.prompt(task.read(tmp_path, "test")[2]) == "Find free space, number 2. Answer so."
    assert majority_share(task.read(tmp_path, "test")) is None and without_area(task.read(tmp_path, "test")) == 0


def test_the_table_of_where2place(tmp_path):
    where2place_table(tmp_path)
    records, metrics = scored("where2place", tmp_path, ["(0.3, 0.5)", "(0.8, 0.5)"])
    assert [r["score"] for r in records] == [1, 0] and records[0]["question"] == f"Find free space. {HOW}"
    assert records[1]["image"] == "where2place/data/test-00000-of-00001.parquet#1/image"


def test_refspatial(tmp_path):
    refspatial(tmp_path)
    # Whatever is not black belongs to the region: its grey is 1 of 255 here.
    outputs = ["(0.3, 0.5)", "(0.3, 0.5), (0.9, 0.9)", "(0.25, 0.25, 0.75, 0.75)", "[300, 500]"]
    records, metrics = scored("refspatial", tmp_path, outputs)
    assert [r["id"] for r in records] == ["location-0", "location-1", "placement-0", "unseen-0"]
    # The box has columns 10 to 29 and rows 5 to 14: 200 pixels, of which 100 are marked.
    assert [r["score"] for r in records] == [1, 0.5, 0.5, 0]
    assert records[0]["question"] == "Point to the cup. Answer so."
    close(metrics, {
        "accuracy": 2 / 4, "accuracy/location": 0.75, "accuracy/placement": 0.5, "accuracy/unseen": 0,
        "mean_accuracy": (0.75 + 0.5) / 3, "accuracy/step/1": 1.5 / 3, "accuracy/step/2": 0.5, "parse_failures": 1 / 4,
    })  # fmt: skip
    assert records[3]["lenient_scores"] == {"1": 0, "100": 0, "1000": 1, "pixels": 0}
    examples = get_task("refspatial:unseen").read(tmp_path, "unseen")
    assert [e.id for e in examples] == ["unseen-0"] and get_task("refspatial:unseen").num_examples["unseen"] == {
        "unseen": 77
    }


def test_points_on_one_scale_that_suits_the_outputs_best(tmp_path):
    refspatial(tmp_path)
    outputs = ['[{"point_2d": [300, 500], "label": "cup"}]', "[700, 500]", "(310, 510)", "(320, 400), (900, 900)"]
    _, metrics = scored("refspatial", tmp_path, outputs)
    assert metrics["lenient_accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4) and metrics["accuracy"] == 0


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("[(0.5, 0.25)]", [[20, 5]]),
        ("(0.5,1)", [[20, 20]]),  # one number with a point makes both fractions
        ("(12, 7) and (3, 4)", [[12, 7], [3, 4]]),
        ("(-0.01, 0.5)", [[0, 10]]),  # towards 0
        ("(0.1, 0.2, 0.6, 0.7)", [[4, 4, 24, 14]]),
        ("(1, 2, 5, 9)", [[1, 2, 5, 9]]),
        ("(1, 2, 3) (4) (a, b) [1, 2] (0.5 0.5) ()", []),
        ("(" + "9" * 400 + ", 5)", [[10**9, 5]]),
        ("", []),
    ],
)
def test_points_of_an_answer(text, places):
    assert find_places(text, WIDTH, HEIGHT) == places


def test_pairs_of_any_kind():
    assert find_pairs('<point x="61.5" y="40" alt="cup"> [3, .5] (7,8) {"x": 1} (1, 2, 3)') == [
        [61.5, 40],
        [3, 0.5],
        [7, 8],
    ]
    assert find_pairs('<points x1="1" y1="2" x2="3" y2="4">') == [[1, 2], [3, 4]]


def test_boxes_count_as_all_their_pixels_inside_the_image():
    mask = np.zeros((HEIGHT, WIDTH))
    mask[5:15, 10:20] = 1
    assert share_inside([[10, 5, 20, 15]], mask) == 1
    assert share_inside([[-7, -3, 20, 15]], mask) == pytest.approx(100 / (20 * 15))
    assert share_inside([[10, 5, 900, 900]], mask) == pytest.approx(100 / (30 * 15))
    assert share_inside([[20, 5, 10, 15]], mask) == 0 and share_inside([], mask) == 0
    assert share_inside([[10, 5, 20, 15], [0, 0]], mask) == pytest.approx(100 / 101)
    assert share_inside([[39, 19], [40, 19], [39, 20], [-1, 0]], np.ones((HEIGHT, WIDTH))) == 1 / 4


def test_masks_as_text():
    grey = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    assert (unpacked(packed(grey), WIDTH, HEIGHT) == grey / 255).all()
    for mask in (packed(grey[:5]), packed(grey)[:400], "x", "!!!!"):
        with pytest.raises(ValueError, match="the mask"):
            unpacked(mask, WIDTH, HEIGHT)
    bomb = packed(np.zeros((4000, 4000), np.uint8))
    assert unpacked(bomb, WIDTH, HEIGHT).shape == (HEIGHT, WIDTH), "no more is unpacked than there may be"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "unreadable"), (b"GIF", "unreadable"), (region()[:60], "unreadable"), (region(grey=0), "is empty"),
     (None, "unreadable")],
)  # fmt: skip
def test_masks_that_are_none(content, reason, tmp_path):
    where2place(tmp_path)
    mask = tmp_path / "where2place/masks/01.jpg"
    mask.unlink() if content is None else mask.write_bytes(content)
    with pytest.raises(ValueError, match=rf"point_questions\.jsonl: row 1 .*where2place/masks/01\.jpg.*{reason}"):
        get_task("where2place").read(tmp_path, "test")


def test_countbenchqa(tmp_path):
    countbenchqa(tmp_path)
    outputs = ["2", "There are 10 of them, or 12", "I see four", "several"]
    records, metrics = scored("countbenchqa", tmp_path, outputs)
    assert [r["answer"] for r in records] == ["2", "10", "3", "4"] and [r["count"] for r in records] == [2, 10, 4, None]
    close(metrics, {"accuracy": 2 / 4, "within_one": 3 / 4, "exact_accuracy": 1 / 4, "parse_failures": 1 / 4})
    task, brief = get_task("countbenchqa"), get_task("countbenchqa+llava")
    example = task.read(tmp_path, "test")[0]
    assert task.prompt(example) == "How many apples are there?", "the caption names the number"
    assert brief.prompt(example).endswith("\nAnswer the question using a single word or phrase.")
    assert "two" not in json.dumps(example.record())


def test_pixmo_count(tmp_path):
    pixmo_count(tmp_path)
    records, metrics = scored("pixmo-count", tmp_path, ["12", "Five."])
    assert [r["score"] for r in records] == [0, 1] and metrics["exact_accuracy"] == 0.5
    assert records[0]["question"] == "How many people are there?"
    rows = [{"image_url": "http://a/b.jpg", "image_sha256": "0" * 64, "count": 3, "label": "dogs"}]
    write_parquet(tmp_path / "pixmo-count/data/test-00000-of-00001.parquet", rows, images=())
    with pytest.raises(
        ValueError,
        match="it lacks image; its columns are .*image_url.*expected parquet with image, question and answer",
    ):
        get_task("pixmo-count").read(tmp_path, "test")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3", 3), ("there are 12 dogs", 12), ("Twelve", 12), ("none", 0), ("None of them", 0), ("twenty-one cars", 21),
        ("ninety nine", 99), ("seventy", 70), ("Someone has 4", 4), ("1,234 people", 1234), ("007", 7), ("2.5", 2),
        ("no number", None), ("", None), ("v1.5", None), ("tenth", None), ("9" * 50, None), ("0", 0),
        ("weightless", None), ("ONE", 1), ("-3", 3), ("²", None), ("a b c\n4", 4), ("four5", None),
        ("No one is there.", 0), ("Nobody.", 0), ("There are no cars, but 2 buses.", 0), ("No, there are 3.", 3),
        ("The one on the left... I count 4.", 4), ("In image 1 there are 5.", 5), ("Of 5 dogs, there are 3 brown.", 3),
        ("Step 2: 1 + 6. The answer is 7.", 7), ("The answer is none.", 0), ("I see no dogs.", 0), ("No cars", None),
        ("There are some. In all 6.", 6),
    ],
)  # fmt: skip
def test_the_first_number_of_a_text(text, count):
    assert first_count(text) == count


def test_errors_count_as_wrong(tmp_path):
    for name, write in WRITERS.items():
        write(tmp_path)
        task = get_task(name)
        records = [
            example.record() | {"output": "", "error": "too long"} for example in task.read(tmp_path, task.split)
        ]
        records = [record | task.scorer.judge(record) for record in records]
        metrics = task.scorer.summarise(records)
        assert metrics["accuracy"] == 0 and metrics["parse_failures"] == 1
        assert task.scorer.summarise([])["accuracy"] is None


@pytest.mark.parametrize("name", WRITERS)
def test_odd_outputs_are_scored(name, tmp_path):
    WRITERS[name](tmp_path)
    task, rng = get_task(name), random.Random(0)
    example = task.read(tmp_path, task.split)[0].record()
    odd = [
        "(" * 9999,
        "(1," * 3000,
        "9" * 9999,
        "(0.1, 0.2, 0.3, 0.4)" * 400,
        "\ud800",
        "(1e400, 2)",
        "\0",
        "(nan, 1.0)",
    ]
    odd += ["".join(rng.choice('0123456789.,()[]- xy="e\n') for _ in range(300)) for _ in range(200)]
    for said in odd:
        record = example | {"output": said}
        assert 0 <= task.scorer.judge(record)["score"] <= 1
        json.dumps(task.scorer.judge(record))


def test_through_the_runner(tmp_path):
    """The bundled model answers questions about embedded images."""
    refspatial(tmp_path), countbenchqa(tmp_path)
    engine = load_engine("miniature", dtype=torch.float32, device="cpu", batch_size=4)
    for name in ("refspatial", "countbenchqa"):
        task = get_task(name)
        examples = task.read(tmp_path, task.split)
        job = Job(name, task, examples, tmp_path)
        entry = run_job(job, engine, PartialState(), tmp_path / "out", "f", box_frame="image")
        lines = (tmp_path / "out" / name / "samples.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert entry["errors"] == 0 and [r["id"] for r in records] == [e.id for e in examples]
        assert entry["metrics"] == task.scorer.summarise([r | task.scorer.judge(r) for r in records])
        assert "accuracy" in entry["intervals"] and (entry["majority"] is None) == (name == "refspatial")
    assert embedded.source(tmp_path, examples[0].image).getvalue() == png(2)
