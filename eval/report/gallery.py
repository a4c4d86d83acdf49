"""Answers to look at: which, and their pictures with the true and the predicted boxes."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import IO

from eval.data import embedded
from eval.data.selection import seeded_order
from eval.report.charts import colour
from eval.report.runs import Run
from eval.task import Example, Record
from eval.tasks import get_task
from prismatic.text import parsing
from vision_backbones.safe_images import open_image

MOST = 24  # a task
SIDE = 300  # pixels, the longest side of a picture
TRUTH = "#18a418"
LONGEST = 2000  # characters of a text


def cards(key: str, runs: Sequence[Run], records: Sequence[Sequence[Record]], root: Path) -> tuple[list[dict], int]:
    """Pictures and texts of some answers, and of how many they were chosen.

    Of one run these are answers that score less than half; of several, those whose scores differ by half or more. They
    are drawn at random, the same ones every time. Answers that failed with an error are left out.

    Args:
        key: Of the task.
        runs: Whose answers.
        records: Of each run, of the same examples in the same order.
        root: Data root, where images are.
    """
    rows = [row for row in zip(*records, strict=True) if not any(record.get("error") for record in row)]
    scores = [[record["score"] for record in row] for row in rows]
    worth = [s[0] < 0.5 if len(runs) == 1 else max(s) - min(s) >= 0.5 for s in scores]
    rows = sorted((row for row, shown in zip(rows, worth, strict=True) if shown), key=lambda row: row[0]["id"])
    return [_card(key, runs, row, root) for row in seeded_order(rows)[:MOST]], len(rows)


def picture(record: Record, boxes: Sequence[tuple[str, Sequence[float]]], file: Path | IO[bytes], image_of=None) -> str:
    """A small JPEG of an image, as a data URI, with boxes drawn on it, the first in wider lines.

    Args:
        record: Of the image.
        boxes: Pairs of colour and [x1, y1, x2, y2], fractions of the image.
        file: That holds the image.
        image_of: The task's.

    Raises:
        OSError: The image is not there, or cannot be read.
    """
    from PIL import Image, ImageDraw

    with open_image(file) as opened:
        if image_of is None:
            opened.draft("RGB", (SIDE, SIDE))  # JPEGs are decoded no larger than needed
        image = image_of(opened, _example(record)) if image_of else opened
        image = image.convert("RGB")
    if max(image.size) < SIDE:  # lines are thin beside the things in a small image
        image = image.resize([side * SIDE // max(image.size) or 1 for side in image.size], Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for grow, width, only in ((1, 4, "white"), (0, 2, None)):  # white edges below all lines: seen on any colour
        for number, (shade, box) in enumerate(boxes):
            corners = [min(max(value, 0.0), 1.0) * (side - 1) for value, side in zip(box, image.size * 2, strict=True)]
            x1, y1, x2, y2 = map(round, corners)
            wider = 0 if number else 1  # so that the first is seen below an equal one
            out = grow + wider
            place = (min(x1, x2) - out, min(y1, y2) - out, max(x1, x2) + out, max(y1, y2) + out)
            draw.rectangle(place, outline=only or shade, width=width + 2 * wider)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=80, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _card(key: str, runs: Sequence[Run], row: Sequence[Record], root: Path) -> dict:
    record = row[0]
    boxes = [(TRUTH, record["answer"])] if "box" in record else []
    boxes += [(colour(place), r["box"]) for place, r in enumerate(row) if r.get("box")]
    try:
        image_of = get_task(key).image_of
    except ValueError:  # a task of a plugin that is not loaded
        image_of = None
    try:
        images, reason = (record["image"], *record.get("more_images", ())), None
        shown = [picture(record, boxes, embedded.source(root, image), image_of) for image in images]
    except FileNotFoundError:
        shown, reason = [], "the image is not there"
    except Exception as error:  # whatever is wrong with one image, there is a report
        shown, reason = [], f"the image cannot be shown: {error}"
    return {
        "id": record["id"],
        "image": record["image"],
        "subset": record["subset"],
        "picture": shown[0] if shown else None,
        "more_pictures": shown[1:],
        "reason": reason,
        "prompt": _cut(record.get("prompt") or record["question"]),
        "truth": _cut(_truth(record)),
        "answers": [
            {
                "run": run.name,
                "colour": colour(place),
                "output": _cut(r["output"]),
                "score": r["score"],
                "notes": _notes(r),
            }
            for place, (run, r) in enumerate(zip(runs, row, strict=True))
        ],
    }


def _truth(record: Record) -> str:
    answer = record["answer"]
    if "box" in record:
        return ", ".join(f"{value:.2f}" for value in answer)
    if isinstance(answer, list):
        return ", ".join(f"{said} ({count})" for said, count in Counter(map(str, answer)).most_common())
    return _option(str(answer), record)


def _option(option: str, record: Record) -> str:
    """An option, with what its letter stands for."""
    choices = record["info"].get("choices") or []
    letters = list(ascii_uppercase[: len(choices)])
    return f"{option}. {choices[letters.index(option)]}" if option in letters and option not in choices else option


def _notes(record: Record) -> list[str]:
    """What the scorer made of an output."""
    if "box" in record:
        lenient = parsing.find_box(record["output"]) if not record["box"] else None
        unread = "is not a list of four fractions" + (f"; numbers found: {lenient}" if lenient else "")
        return [f"IoU {record.get('iou', 0.0):.2f}" if record["box"] else unread]
    if record.get("probabilities") and record.get("options"):
        likeliest = sorted(zip(record["probabilities"], record["options"], strict=False), key=lambda pair: -pair[0])
        return [", ".join(f"{_option(option, record)} {p:.0%}" for p, option in likeliest[:3])]
    return []


def _example(record: Record) -> Example:
    names = ("id", "image", "question", "answer", "subset", "info")
    return Example(**{name: record[name] for name in names}, more_images=tuple(record.get("more_images", ())))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
