"""The newer benchmarks on disk: read by their own readers, their answers checked against pixels."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_spatial import AXIS, before, meant

from eval.runner import data_root, read_jobs
from eval.tasks import get_task
from prismatic.miniature.benchmarks import BENCHMARK_SEED, WRITERS, write_benchmarks
from prismatic.miniature.newer_benchmarks import NEWER_WRITERS
from prismatic.miniature.scenes import COLOURS, scene

COUNT = 48
KEYS = ("mmvp", "cv-bench:2D", "whatsup", "embspatial")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks") / "root", COUNT)


@pytest.fixture(scope="module")
def jobs(root):
    return {job.key: job for job in read_jobs(KEYS, root, allow_partial=True)}


def things(benchmark, index):
    number = list(WRITERS | NEWER_WRITERS).index(benchmark)
    return scene(BENCHMARK_SEED + number, index, 2 + index % 3, 2 + index % 3).things


def centre_of(path, colour):
    """Row and column of the middle of all pixels that are nearest to a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    background = np.ptp(pixels, axis=2) < 60
    far = np.stack([np.abs(pixels - np.array(rgb)).sum(2) for rgb in COLOURS.values()])
    return np.argwhere(~background & (far.argmin(0) == list(COLOURS).index(colour))).mean(0)


def named(question):
    return question.removeprefix("Where is the ").removesuffix("?").split(" with respect to the ")


def option_of(example):
    return example.info["choices"]["ABCD".index(example.answer)]


def test_pairs_differ_in_the_place_of_one_thing(root, jobs):
    examples = jobs["mmvp"].examples
    assert len(examples) > COUNT and len(examples) % 2 == 0
    for first, second in zip(examples[::2], examples[1::2], strict=True):
        assert first.info["pair"] == second.info["pair"] and first.question == second.question
        answers = [option_of(example) for example in (first, second)]
        assert set(answers) == set(first.info["choices"]) and answers[0] != answers[1]
        one, _ = named(first.question)
        places = [centre_of(root / example.image, one.split()[0]) for example in (first, second)]
        axis = AXIS[answers[0]]
        moved = places[1][axis] - places[0][axis]
        assert (moved > 0) == (answers[0] in ("left", "above")), (first.id, places, answers)
    assert len({option_of(e) for e in examples}) == 4
    assert max(Counter(e.answer for e in examples).values()) == len(examples) / 2


def test_numbers_and_directions(jobs):
    examples = jobs["cv-bench:2D"].examples
    for example in examples:
        seen = things("cv-bench", example_index(example))
        if example.info["task"] == "Count":
            noun = example.question.removeprefix("How many ").removesuffix("?").replace(" are there", "")
            expected = str(len(meant(noun.replace(" are ", " ").replace(" half", ""), seen)))
            assert option_of(example) == expected and len(set(example.info["choices"])) == 4
        else:
            one, two = (meant(name, seen)[0] for name in named(example.question))
            assert [before(one, two, word) for word in example.info["choices"]].index(True) == "ABCD".index(
                example.answer
            )
        assert (
            example.question in example.info["prompt"] and f"(A) {example.info['choices'][0]}" in example.info["prompt"]
        )
    assert {e.subset for e in examples} == {"2D/ADE20K", "2D/COCO"}


def example_index(example):
    """Scenes have one or two questions, the first of which counts."""
    return example_index.numbers[example.id]


@pytest.fixture(scope="module", autouse=True)
def numbers(root):
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(root / "cv-bench/test_2d.parquet", columns=["idx", "filename"]).to_pylist()
    example_index.numbers = {str(row["idx"]): int(Path(row["filename"]).stem) for row in rows}


def test_captions(root, jobs):
    examples, checked = jobs["whatsup"].examples, 0
    assert len(examples) == 4 * (COUNT // 4)
    for example in examples:
        caption = option_of(example)
        subject, place = caption.removesuffix(".").removeprefix("The ").split(" is ")
        other = place.split(" the ")[-1]
        (axis,) = {AXIS[word] for word in place.split() if word in AXIS}
        if subject.split()[0] != other.split()[0]:
            one, two = (centre_of(root / example.image, name.split()[0]) for name in (subject, other))
            assert (one[axis] < two[axis]) == any(word in place.split() for word in ("left", "above")), caption
            assert abs(one - two)[axis] > abs(one - two)[1 - axis] + 3
            checked += 1
    assert checked > len(examples) / 3
    assert Counter(e.info["relation"] for e in examples) == dict.fromkeys(("left", "right", "on", "under"), COUNT // 4)


def test_objects_by_place(jobs):
    for example in jobs["embspatial"].examples:
        seen = things("embspatial", int(example.id.split("_")[1]))
        words = example.question.removesuffix("?")
        if words.startswith("Where is"):
            (thing,) = meant(words.removeprefix("Where is "), seen)
            fitting = [thing in meant(f"object in the {place}", seen) for place in example.info["choices"]]
        else:
            place = words[words.index(" in the ") :] if " in the " in words else words.split(" is ")[1]
            place = place.removeprefix("the ") + " object" if place.endswith("most") else f"object {place.strip()}"
            (thing,) = meant(place, seen)
            fitting = [choice in (thing.name, thing.shape, thing.colour) for choice in example.info["choices"]]
        assert fitting.index(True) == "ABCD".index(example.answer) and sum(fitting) == 1


def test_they_are_among_the_benchmarks_of_the_miniature_world(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = data_root("miniature:4")
    assert {folder.name for folder in root.iterdir()} == {*WRITERS, *NEWER_WRITERS}
    assert all(get_task(key).read(root, get_task(key).split) for key in KEYS)
