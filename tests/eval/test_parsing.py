"""Boxes and choices against the reference's parser, and against whatever text there can be."""

import json
import math

import pytest
from golden_cases import golden_dir, load_json, requires_golden
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.scoring.scorers import iou_at
from prismatic.text import parsing


def scoring_files(pattern: str, holding: str = "") -> list[str]:
    root = golden_dir() / "C_vlmeval"
    return sorted(p.relative_to(root).as_posix() for p in root.glob(pattern) if holding in p.read_text())


@requires_golden
@pytest.mark.parametrize("path", scoring_files("scoring/*/case_*.json", "per_example"))
def test_boxes_and_overlaps_equal_the_reference(path):
    case = load_json(f"C_vlmeval/{path}")
    assert len(case["per_example"]) > 50
    for row in case["per_example"]:
        box = parsing.parse_box(row["model_output"])
        assert box == row["parsed"], row
        if box:
            assert parsing.iou(box, row["ground_truth_bbox"]) == pytest.approx(row["iou"], abs=1e-12)


@requires_golden
@pytest.mark.parametrize("path", scoring_files("scoring/*/parse_bbox_extreme.json"))
def test_extreme_texts_are_parsed_as_the_reference_does_or_refused_where_it_crashed(path):
    for row in load_json(f"C_vlmeval/{path}"):
        assert parsing.parse_box(row["text"]) == row.get("parsed")


@requires_golden
@pytest.mark.parametrize("path", scoring_files("scoring/*/iou_exact.json"))
def test_overlap_at_the_threshold(path):
    threshold = 0.5 if "refcoco" in path else 0.25
    for row in load_json(f"C_vlmeval/{path}"):
        assert parsing.iou(row["pred"], row["gt"]) == pytest.approx(row["iou"], abs=1e-15)
        record = {"output": str(row["pred"]), "answer": row["gt"], "subset": "", "info": {}}
        assert iou_at(threshold).judge(record)["score"] == float(row["correct"])


@requires_golden
def test_pixel_boxes_become_the_reference_fractions():
    for row in load_json("C_vlmeval/index/box_conversion.json"):
        x, y, w, h = row["xywh"]
        assert parsing.box_fractions((x, y, x + w, y + h), *row["wh"]) == row["normalized"]
        assert parsing.box_fractions((x, y, x + w, y + h), 1, 1) == row["unnormalized"]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.8, 0.9].", [0.1, 0.2, 0.8, 0.9]),
        ("The 3 dogs are at [0.1, 0.2, 0.8, 0.9]", [0.1, 0.2, 0.8, 0.9]),
        ('{"bbox_2d": [10, 20, 80, 90]}', [10, 20, 80, 90]),
        ("<box>(100, 200), (800, 900)</box>", [100, 200, 800, 900]),
        ("10%, 20%, 80%, 90%", [10, 20, 80, 90]),
        ("10px, 20px, 80px, 90px", [10, 20, 80, 90]),
        ("x1: .1, y1: .2, x2: .8, y2: .9", [0.1, 0.2, 0.8, 0.9]),
        ("from (0.1, 0.2) at the top left to (0.8, 0.9)", [0.1, 0.2, 0.8, 0.9]),
        ("Image 1 of 2: [10, 20, 30, 40]", [10, 20, 30, 40]),
        ("[5, 0, 80, 90]", [5, 0, 80, 90]),
        (f"10, 20,{' ' * 39}80, 90", [10, 20, 80, 90]),
        (f"10, 20,{' ' * 40}80, 90", None),
        ("[0.8, 0.9, 0.1, 0.2]", None),
        ("[1e400, 2, 3, 4]", None),
        ("four numbers", None),
    ],
)
def test_boxes_found_in_other_texts(text, box):
    assert parsing.find_box(text) == box
    assert parsing.parse_box(text) is None


def test_padded_square_is_undone():
    landscape = parsing.from_padded_square([0.25, 0.25, 0.75, 0.75], 640, 320)
    assert landscape == pytest.approx([0.25, 0.0, 0.75, 1.0])  # the picture is the middle half of the square
    portrait = parsing.from_padded_square([0.25, 0.0, 0.75, 0.5], 320, 640)
    assert portrait == pytest.approx([0.0, 0.0, 1.0, 0.5])


def test_padded_square_is_what_letterbox_makes():
    import numpy as np
    from PIL import Image

    from vision_backbones.transforms import Letterbox

    image = np.zeros((200, 300, 3), np.uint8)
    image[50:120, 60:240] = 255  # x 60..240, y 50..120
    square = np.asarray(Letterbox((0, 0, 0))(Image.fromarray(image)))[..., 0] > 0
    ys, xs = np.where(square)
    side = square.shape[0]
    seen = [xs.min() / side, ys.min() / side, (xs.max() + 1) / side, (ys.max() + 1) / side]
    back = parsing.from_padded_square(seen, 300, 200)
    assert back == pytest.approx([60 / 300, 50 / 200, 240 / 300, 120 / 200])


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        (" b.", 1),
        ("B. a dog", 1),
        ("(D) none", 3),
        ("Banana", None),
        ("a dog", None),
        ("a. dog", 0),
        ("A dog", 0),
        ("", None),
        ("E", None),
        ("?!", None),
    ],
)
def test_choices(text, choice):
    assert parsing.parse_choice(text, "ABCD") == choice


@pytest.mark.parametrize(
    ("text", "no"),
    [
        ("No", True),
        ("no.", True),
        ("Yes", False),
        ("There is not, sorry", True),
        ("Yes. No", False),
        ("Nope", False),
        ("NO", False),
        ("", False),
    ],
)
def test_official_pope_rule(text, no):
    assert parsing.says_no(text) == no


LIKE_A_BOX = st.text(alphabet="[](){}0123456789.,-+eExy:_%'\"# \n\t\\jn", max_size=400)


@settings(max_examples=400, deadline=500)
@given(st.text(max_size=400) | LIKE_A_BOX)
@example("[" * 100_000)
@example("-" * 100_000 + "1")
@example("1" * 100_000)
@example("1 " * 100_000)
@example("{" * 300 + "}" * 300)
@example("[0.1,\x000.2, 0.3, 0.4]")
@example("\ud800[1")
@example("[{[]}, 1, 2, 3]")
@example("__import__('os').system('exit 3')")
def test_any_text_is_taken(text):
    strict, found = parsing.parse_box(text), parsing.find_box(text)
    for box in (strict, found):
        assert box is None or (len(box) == 4 and box[0] < box[2] and box[1] < box[3])
    if strict is not None:
        assert 0 <= min(strict) and max(strict) <= 1
    parsing.parse_choice(text, "ABCD")
    parsing.says_no(text)


@pytest.mark.parametrize("size", [(0, 9), (9, 0), (-1, 9), (9, -1), (math.inf, 9), (9, math.nan)])
def test_an_image_without_a_size_has_no_boxes(size):
    with pytest.raises(ValueError, match="is not a valid box in an image of"):
        parsing.box_fractions((0, 0, 1, 1), *size)
    for corner in (math.nan, math.inf):
        with pytest.raises(ValueError, match="is not a valid box"):
            parsing.box_fractions((0, corner, 1, 1), 9, 9)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_written_boxes_are_read_back(values):
    x1, y1, x2, y2 = values
    expected = values if x1 < x2 and y1 < y2 else None
    assert parsing.parse_box(json.dumps(values)) == expected
    if expected:
        assert parsing.find_box(f"It is at {json.dumps(values)}.") == values


@pytest.mark.parametrize("unit", ["[", "(", "-", "1", "1,", "[1, 2, ", "'", "x1:", "\\", "1e", "{1:", "not "])
@pytest.mark.parametrize("length", [9_990, 1_000_000])
def test_time_is_bounded(unit, length):
    """What follows `LONGEST` characters is not looked at; benchmarks/parsing.py has the times of what is."""
    text, box = unit * (length // len(unit)), "[0.1, 0.2, 0.3, 0.4]"
    found = parsing.find_box(text), parsing.parse_choice(text, "ABCD")
    parsing.parse_box(text), parsing.says_no(text)
    if length > parsing.LONGEST:
        assert found == (parsing.find_box(text + box), parsing.parse_choice(text + " B", "ABCD"))
        assert parsing.parse_box(" " * length + box) is None and parsing.parse_box(" " + box) == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([0, 0, 1, 1], [2, 0, 3, 1], 0.0),  # beside one another, above one another, both
        ([0, 0, 1, 1], [0, 2, 1, 3], 0.0),
        ([0, 0, 1, 1], [2, 2, 3, 3], 0.0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),  # both empty
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
    ],
)
def test_overlap_of_boxes_by_hand(one, two, expected):
    assert parsing.iou(one, two) == parsing.iou(two, one) == pytest.approx(expected, abs=0)


def test_boxes_may_be_two_pixels_outside():
    for at in range(4):
        box = [10, 10, 90, 40]
        box[at] = (-2, -2, 102, 52)[at]
        parsing.true_box(box, 100, 50)
        box[at] += (-1, -1, 1, 1)[at]
        with pytest.raises(ValueError, match="is not inside"):
            parsing.true_box(box, 100, 50)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", [[0.1, 0.2, 0.3, 0.4]]),
        ("the dog [0.1,0.2,0.3,0.4] and the cat [0.5, 0.5, 1, 1].", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]]),
        ("x1: 0.1, y1: 0.2, x2: 0.3, y2: 0.4; 0.5 0.6 0.7 0.8", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]),
        ("two dogs, 3 cats", []),
        ("[0.3, 0.2, 0.1, 0.4]", []),  # the corners are in another order
        ("[10, 20, 30, 40] or [0.1, 0.2, 0.3, 0.4]", [[10, 20, 30, 40], [0.1, 0.2, 0.3, 0.4]]),
    ],
)
def test_all_boxes_of_an_answer(text, boxes):
    assert parsing.find_boxes(text) == boxes
    inside = [box for box in boxes if max(box) <= 1]
    assert parsing.boxes_in_image(text, "image", 640, 480) == inside


def test_boxes_of_a_padded_square_lie_in_the_image():
    """A wide image of 200 x 100 in a square of 200: rows 50 to 150 are its own."""
    assert parsing.boxes_in_image("[0.5, 0.25, 1, 0.5]", "padded-square", 200, 100) == [[0.5, 0.0, 1.0, 0.5]]
    assert parsing.boxes_in_image("[0.5, 0.0, 1, 0.5]", "padded-square", 200, 100) == [[0.5, 0.0, 1.0, 0.5]]
    assert parsing.boxes_in_image("[0.5, 0.0, 1, 0.2]", "padded-square", 200, 100) == []
