import functools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_spatial import meant

from prismatic.miniature.language import KINDS, LOOKS, answer_priors, cell_contents, prompt, questions
from prismatic.miniature.llava_writer import write_llava
from prismatic.miniature.scenes import CLASSES, COLOURS, IMAGE_SIZE, scene, scenes


@functools.cache
def world():
    return list(scenes(5, 0, 400))


@functools.cache
def every_question():
    return [(s, q) for i, s in enumerate(world()) for q in questions(s.things, np.random.default_rng(i))]


def test_a_scene_depends_on_seed_and_index_alone():
    again = scene(5, 17)
    assert again.things == world()[17].things and np.array_equal(again.image, world()[17].image)
    assert scene(6, 17).things != again.things or not np.array_equal(scene(6, 17).image, again.image)


def test_boxes_are_those_of_the_masks_and_objects_do_not_touch():
    for s in world()[:100]:
        assert 1 <= len(s.things) <= 4
        owners = s.instance_map()
        for number, thing in enumerate(s.things, start=1):
            rows, columns = np.nonzero(owners == number)
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 and 0 <= y1 and x2 <= IMAGE_SIZE and y2 <= IMAGE_SIZE
            assert (columns.min(), rows.min()) == pytest.approx((x1, y1), abs=1)
            assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x2, y2), abs=1)
            assert (owners == number).sum() == thing.mask().sum(), "objects overlap"


def test_objects_have_the_colour_they_are_called():
    near = []
    for s in world()[:100]:
        for thing in s.things:
            seen = s.image[thing.mask()].mean(0)
            near.append(
                min(COLOURS, key=lambda c, seen=seen: np.abs(np.array(COLOURS[c]) - seen).sum()) == thing.colour
            )
    assert np.mean(near) == 1


def centre(mask):
    return np.argwhere(mask).mean(0)[::-1]


def test_answers_hold_in_the_pixels():
    """Every answer is checked against masks and names, not against how it was made."""
    checked = Counter()
    for s, q in every_question():
        named = {}
        for thing in s.things:
            named.setdefault(thing.name, []).append(thing)
        words = q.text.rstrip("?.").split()
        mentioned = [f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if f"{a} {b}" in CLASSES]
        if q.kind == "exists":
            assert (q.answer == "yes") == (mentioned[0] in named)
        elif q.kind == "count":
            noun = q.text.removeprefix("How many ").removesuffix("?").replace(" are there", "")
            assert int(q.answer) == len(meant(noun.replace(" are ", " ").replace(" half", ""), s.things))
        elif q.kind in ("color", "shape"):
            (thing,) = [t for t in s.things if (t.shape if q.kind == "color" else t.colour) in words]
            assert q.answer in thing.name.split()
        elif q.kind == "size":
            (thing,) = named[mentioned[0]]
            assert (q.answer == "large") == (np.ptp(np.argwhere(thing.mask()), axis=0).max() > 10)
        elif q.kind == "where":
            (thing,) = named[mentioned[0]]
            x, y = centre(thing.mask())
            assert ("left" in q.answer) == (x < IMAGE_SIZE / 2) and ("top" in q.answer) == (y < IMAGE_SIZE / 2 + 1.5)
        elif q.kind == "direction":
            (x1, y1), (x2, y2) = (centre(named[name][0].mask()) for name in mentioned)
            assert {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}[q.answer]
        elif q.kind == "relation":
            (x1, y1), (x2, y2) = (centre(named[name][0].mask()) for name in mentioned)
            holds = {"left": x1 < x2, "right": x1 > x2, "above": y1 < y2, "below": y1 > y2}
            (word,) = [w for w in holds if w in words]
            assert (q.answer == "yes") == holds[word]
        elif q.kind == "box":
            x1, y1, x2, y2 = json.loads(q.answer)
            (thing,) = meant(q.text.split('"')[1], s.things)
            rows, columns = np.nonzero(thing.mask())
            assert (x1 * IMAGE_SIZE, y2 * IMAGE_SIZE) == pytest.approx((columns.min(), rows.max() + 1), abs=1.5)
        elif q.kind == "statement":
            subject, place = q.text.split("? ")[1].split(".")[0].removeprefix("The ").split(" is ")
            (one,) = meant(subject, s.things)
            assert q.answer == str(one in meant(f"object {place}", s.things))
        elif q.kind == "tally":
            asked, *options, _ = q.text.split("\n")
            noun = asked.removeprefix("How many ").removesuffix("?").replace(" are there", "")
            number = len(meant(noun.replace(" are ", " ").replace(" half", ""), s.things))
            assert f"{q.answer}. {number}" in options and len(options) == 16
        elif q.kind == "choice":
            assert len(q.text.split("\n")) == 6 and q.answer in "ABCD"  # which one: see test_spatial
        elif q.kind == "option":
            assert len(q.text.split("\n")) in (4, 6) and q.answer in "ABCD"  # likewise
        elif q.kind == "which":
            assert q.text.endswith("?") and q.answer  # likewise
        checked[q.kind] += 1
    assert set(checked) == set(KINDS) and min(checked.values()) > 100


def test_yes_and_no_are_balanced_and_priors_are_low():
    priors = answer_priors(q for _, q in every_question())
    for kind in set(KINDS) - {"box"}:
        answers = [q.answer for _, q in every_question() if q.kind == kind]
        assert answers.count(priors[kind]) / len(answers) < 0.62, kind


def test_questions_with_short_answers_and_no_others_ask_for_one():
    for _, q in every_question()[:200]:
        assert ("single word" in prompt(q)) == (q.kind not in ("box", "statement", "tally", "choice", "option"))


def test_the_map_holds_what_covers_each_patch():
    for s in world()[:50]:
        contents = cell_contents(s.things)
        assert contents.shape == (36, 11)
        owners = s.instance_map()
        for cell, held in enumerate(contents):
            row, column = divmod(cell, 6)
            patch = owners[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            for look, share in zip(LOOKS, held, strict=True):
                owned = [n for n, t in enumerate(s.things, start=1) if look in (t.colour, t.shape, t.size)]
                owned = [0] if look == "background" else owned
                assert share == pytest.approx(np.isin(patch, owned).mean())


def test_llava_files(tmp_path):
    folder = write_llava(tmp_path / "world", 60)
    rows = json.loads((folder / "train.json").read_text())
    assert len(rows) == 60 and sum("image" not in r for r in rows) == 3
    assert len({r["image"] for r in rows if "image" in r}) == 12
    for row in rows:
        assert [t["from"] for t in row["conversations"]] == ["human", "gpt"]
        assert row["conversations"][0]["value"].count("<image>") == int("image" in row)
        if "image" in row:
            assert Image.open(folder / row["image"]).size == (IMAGE_SIZE, IMAGE_SIZE)
    boxes = [r["image"] for r in rows if "image" in r and "bounding box" in r["conversations"][0]["value"]]
    assert len(boxes) == len(set(boxes)) == 12  # one of a scene's five questions
    held_out = json.loads((folder / "held_out.json").read_text())
    priors = json.loads((folder / "priors.json").read_text())
    assert all(r["id"].split("-")[1] in priors and len(r["conversations"]) == 2 for r in held_out)
    again = write_llava(tmp_path / "again", 60)
    assert (again / "train.json").read_bytes() == (folder / "train.json").read_bytes()
    stamp = (folder / "train.json").stat().st_mtime_ns
    assert write_llava(folder, 60) == folder and (folder / "train.json").stat().st_mtime_ns == stamp
