"""Newer spatial benchmarks on held-out miniature scenes: mmvp, cv-bench, what'sup and embspatial, in their formats."""

import base64
import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from prismatic.miniature.drawn_files import dump, save
from prismatic.miniature.scenes import CLASSES, HALF_EXTENT, Scene, Thing, draw, fits
from prismatic.miniature.spatial import (
    MARGIN,
    RELATIONS,
    Choice,
    choice,
    count,
    direction,
    related,
    unique_things,
    where_is,
)

NEAR = 8  # pixels that two things of a pair of images are apart at most, along the axis that is asked about
LETTERS = "ABCD"
WHATSUP = {"to the left of": "left_of", "to the right of": "right_of", "above": "on", "below": "under"}


def write_mmvp(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Pairs of images that differ in the place of one thing: on the other side of a second one, a few pixels away."""
    rows = []
    for shown in drawn:
        pair = _pair(shown.things, rng)
        if pair is None:
            continue
        versions, question, answers = pair
        for things, right in zip(versions, answers, strict=True):
            index = len(rows) + 1
            save(draw(things, rng), root / "MMVP Images" / f"{index}.jpg")
            options = " ".join(f"({letter}) {word}" for letter, word in zip("ab", sorted(answers), strict=True))
            rows.append((index, question, options, f"({'ab'[sorted(answers).index(right)]})"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("Index", "Question", "Options", "Correct Answer"), *rows])
    (root / "Questions.csv").write_text(text.getvalue())


def _pair(things: tuple[Thing, ...], rng: np.random.Generator):
    """Two versions of a scene, a question about both, and its answers; None where no thing can be moved."""
    unique = unique_things(things)
    for i in rng.permutation(len(unique) ** 2):
        one, two = unique[i // len(unique)], unique[i % len(unique)]
        axis = "xy"[rng.integers(2)]
        gap = int(rng.integers(MARGIN, NEAR + 1))
        others = [thing for thing in things if thing is not one]
        moved = [dataclasses.replace(one, **{axis: getattr(two, axis) + side}) for side in (-gap, gap)]
        if one is two or not all(fits(thing, others) for thing in moved):
            continue
        order = rng.permutation(2)
        versions = [tuple(moved[k] if thing is one else thing for thing in things) for k in order]
        words = [direction(relation) for relation in RELATIONS if RELATIONS[relation][0] == axis]
        return versions, where_is(one, two), [words[k] for k in order]
    return None


def write_cv_bench(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Its 2D part: numbers of things, and where one is with respect to another; sources take turns."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for index, shown in enumerate(drawn):
        for task, asked in (("Count", _number(shown.things, rng)), ("Relation", _direction(shown.things, rng))):
            if asked is None:
                continue
            options = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, asked.options, strict=False))
            row = {"idx": len(rows), "type": "2D", "task": task, "question": asked.text}
            row |= {"image": {"bytes": _encoded(shown.image, "PNG"), "path": f"{index}.png"}}
            row |= {"choices": list(asked.options), "answer": f"({LETTERS[asked.correct]})"}
            row |= {"prompt": f"{asked.text} Select from the following choices.\n{options}"}
            rows.append(row | {"filename": f"{index}.png", "source": ("ADE20K", "COCO")[index % 2]})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "test_2d.parquet")


def _number(things: tuple[Thing, ...], rng: np.random.Generator) -> Choice:
    asked = count(things, rng)
    options = sorted([asked.answer, *rng.permutation([n for n in range(6) if n != asked.answer])[:3].tolist()])
    return Choice(asked.text, tuple(map(str, options)), options.index(asked.answer))


def _direction(things: tuple[Thing, ...], rng: np.random.Generator) -> Choice | None:
    unique = unique_things(things)
    told = [(a, r, b) for a in unique for b in unique if a is not b for r in RELATIONS if related(a, r, b)]
    if not told:
        return None
    one, relation, two = told[rng.integers(len(told))]
    options = tuple(direction(r) for r in RELATIONS if RELATIONS[r][0] == RELATIONS[relation][0])
    return Choice(where_is(one, two), options, options.index(direction(relation)))


def write_whatsup(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """Set A: of two things, one is to the left, to the right, above and below the other, in four images.

    Set B, where things are in front and behind, is empty.
    """
    pairs = [(one, two) for one in CLASSES for two in CLASSES if one != two]
    rows, taken = [], rng.permutation(len(pairs))[: max(1, len(drawn) // 4)]
    for one, two in (pairs[i] for i in taken):
        sizes = [("small", "large")[rng.integers(2)] for _ in range(2)]
        apart = sum(HALF_EXTENT[size] for size in sizes) + int(rng.integers(2, 7))
        offset, (x, y) = apart / 2, rng.integers(20, 29, size=2).tolist()
        for relation, (axis, sign) in RELATIONS.items():
            across = int(rng.integers(1 - MARGIN, MARGIN))  # along the other axis, too little to say so
            place = {"x": x + across, "y": y + across} | {axis: {"x": x, "y": y}[axis] - sign * int(offset)}
            other = {"x": x, "y": y} | {axis: {"x": x, "y": y}[axis] + sign * (apart - int(offset))}
            things = (
                Thing(*reversed(one.split()), sizes[0], **place),
                Thing(*reversed(two.split()), sizes[1], **other),
            )
            name = f"{one.replace(' ', '-')}_{WHATSUP[relation]}_{two.replace(' ', '-')}.jpeg"
            save(draw(things, rng), root / "controlled_images" / name)
            captions = [f"The {one} is {r} the {two}." for r in sorted(RELATIONS, key=lambda r: r != relation)]
            rows.append({"image_path": f"data/controlled_images/{name}", "caption_options": captions})
    dump(root / "controlled_images_dataset.json", rows)
    dump(root / "controlled_clevr_dataset.json", [])


def write_embspatial(root: Path, drawn: list[Scene], rng: np.random.Generator) -> None:
    """What is where, one of four; images in base64."""
    rows = []
    for index, shown in enumerate(drawn):
        if asked := choice(shown.things, rng, int(rng.integers(4))):
            objects = [
                {"name": t.name, "bbox": [t.box[0], t.box[1], *([2 * HALF_EXTENT[t.size]] * 2)]} for t in shown.things
            ]
            row = {"data_source": ("mp3d", "ai2thor", "scannet")[index % 3], "scene_id": str(index)}
            row |= {"question_id": f"miniature_{index}", "question": asked.text, "relation": _named(asked.text)}
            row |= {"image": base64.b64encode(_encoded(shown.image, "JPEG")).decode(), "objects": objects}
            rows.append(row | {"answer_options": list(asked.options), "answer": asked.correct})
    dump(root / "embspatial_bench.json", rows)


def _named(question: str) -> str:
    """What a question of `choice` is about: a relation, an end, a corner, a place."""
    words = (*(direction(relation) for relation in RELATIONS), "leftmost", "rightmost", "topmost", "bottommost")
    return next((word for word in words if f" {word} " in question.replace("?", " ")), "place")


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"compress_level": 1}
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


NEWER_WRITERS: dict[str, Callable[[Path, list[Scene], np.random.Generator], None]] = {
    "mmvp": write_mmvp,
    "cv-bench": write_cv_bench,
    "whatsup": write_whatsup,
    "embspatial": write_embspatial,
}
