"""Scores of points and boxes that an answer puts on a picture, by a mask of where they should be."""

import base64
import re
import zlib
from collections.abc import Sequence

from eval.scoring.means import Metrics, accuracy, by_info, by_subset, mean, over_subsets
from eval.task import Example, Record, Scorer
from prismatic.text.parsing import LONGEST

_TUPLE = re.compile(r"\(([-+]?\d+\.?\d*(?:,\s*[-+]?\d+\.?\d*)+)\)")
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+))"
_PAIR = re.compile(rf"[(\[]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[)\]]|\bx\d*=\"{_NUMBER}\"\s+y\d*=\"{_NUMBER}\"")
SCALES = {"1": 1, "100": 100, "1000": 1000, "pixels": None}

Place = list[int]  # [x, y] of a pixel, or [x1, y1, x2, y2] of a box, without its last column and row


def in_mask(*, by: Sequence[str] = ()) -> Scorer:
    """Share of an answer's points that lie inside a mask, or the mean grey of a mask below them; no point scores 0.

    An output's points are its tuples of two numbers; a tuple of four, x1, y1, x2, y2, stands for all pixels of a box.
    Numbers with a decimal point are fractions of the image, others are pixels. What lies off the image counts as wrong.
    Beside that: the share of outputs without a tuple (`parse_failures`), and `lenient_accuracy`, of pairs in brackets
    of any kind on whichever one scale (fractions, 0-100, 0-1000, pixels) suits the outputs best.

    Examples' `info["mask"]` is what `packed` returns, of `info["width"]` times `info["height"]` pixels.

    Args:
        by: Names in examples' `info` by whose values accuracy is reported too, as `accuracy/name/value`.
    """

    def judge(record: Record) -> Record:
        text, info = "" if record.get("error") else record["output"][:LONGEST], record["info"]
        width, height = info["width"], info["height"]
        places, pairs = find_places(text, width, height), find_pairs(text)
        lenient = {scale: [_placed(pair, whole, width, height) for pair in pairs] for scale, whole in SCALES.items()}
        mask = unpacked(info["mask"], width, height)
        return {
            "score": share_inside(places, mask),
            "points": places[:100],
            "parsed": bool(places),
            "lenient_scores": {scale: share_inside(its, mask) for scale, its in lenient.items()},
        }

    def measure(records: Sequence[Record]) -> Metrics:
        return {
            "accuracy": accuracy(records),
            "parse_failures": mean(not r["parsed"] for r in records),
            "lenient_accuracy": max(mean(r["lenient_scores"][scale] for r in records) for scale in SCALES),
        }

    def summarise(records: Sequence[Record]) -> Metrics:
        summary = by_subset(records, measure) | by_info(records, by)
        return summary | over_subsets(records, summary)

    return Scorer("accuracy", judge, summarise, "share of points in the mask")


def share_marked(examples: Sequence[Example]) -> float:
    """The expected score of a point anywhere: the mean share of the image that a mask marks."""
    return mean(example.answer["share"] for example in examples)


def find_places(text: str, width: int, height: int) -> list[Place]:
    """The points and boxes of an answer, in pixels of an image of that size; tuples of other lengths are left out."""
    places = []
    for numbers in _TUPLE.findall(text):
        values = [number.strip() for number in numbers.split(",")]
        if len(values) in (2, 4):
            fractions = any("." in value for value in (values if len(values) == 2 else values[:1]))
            sizes = (width, height) * 2 if fractions else (1,) * 4
            places.append([_pixel(float(value) * size) for value, size in zip(values, sizes, strict=False)])
    return places


def find_pairs(text: str) -> list[list[float]]:
    """All pairs of numbers in brackets, or called x and y, on any scale."""
    return [[float(number) for number in found if number] for found in _PAIR.findall(text)]


def share_inside(places: Sequence[Place], mask) -> float:
    """Mean of a mask `[height, width]`, 0 to 1, at all points and all pixels of boxes; 0 off the image, and of nothing.

    Of boxes the pixels off the image do not count.
    """
    height, width = mask.shape
    total, count = 0.0, 0
    for place in places:
        if len(place) == 2:
            x, y = place
            total += float(mask[y, x]) if 0 <= x < width and 0 <= y < height else 0.0
            count += 1
        else:
            x1, y1, x2, y2 = (max(value, 0) for value in place)
            inside = mask[y1:y2, x1:x2]
            total, count = total + float(inside.sum()), count + inside.size
    return total / count if count else 0.0


def packed(grey) -> str:
    """A mask as text: the bytes of an array `[height, width]` of 0 to 255, compressed."""
    return base64.b64encode(zlib.compress(grey.tobytes(), 9)).decode()


def unpacked(mask: str, width: int, height: int):
    """The array `[height, width]`, 0 to 1, of a packed mask.

    Raises:
        ValueError: It is none of that size.
    """
    import numpy as np

    decompress = zlib.decompressobj()
    try:
        grey = decompress.decompress(base64.b64decode(mask, validate=True), width * height)
    except (zlib.error, ValueError) as error:
        raise ValueError(f"the mask is damaged ({error})") from None
    if len(grey) != width * height:
        raise ValueError(f"the mask has {len(grey):,} pixels, expected {width} x {height}")
    return np.frombuffer(grey, np.uint8).reshape(height, width) / 255


def _placed(pair: Sequence[float], whole: int | None, width: int, height: int) -> Place:
    """A pair on the scale from 0 to `whole`, or in pixels, as a pixel."""
    return [_pixel(value * size / whole if whole else value) for value, size in zip(pair, (width, height), strict=True)]


def _pixel(value: float) -> int:
    return int(max(-1e9, min(value, 1e9)))  # towards 0, as the authors do; answers hold numbers of any length
