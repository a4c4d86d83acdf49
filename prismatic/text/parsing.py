"""Boxes and first words from what models say. No output of any kind raises, and none is run."""

import ast
import math
import re
import warnings
from collections.abc import Iterator, Sequence

Box = list[float]

LONGEST = 10_000  # characters; models say at most some hundred
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4})?")
# What may lie between the four numbers of a box; if no box is found so, any words.
_BETWEEN = (
    re.compile(
        r"""(px)? [\s,;:|%"'=/]*  # punctuation,
        ([)\]}>] [\s,;:|%"'=/()\[\]<>{}]*)?  # brackets, none that opens before one was closed,
        ([xy] [_\s]? ([12]|min|max) [\s,;:|%"'=/]*)?  # and names such as "x1:"
        """,
        re.VERBOSE,
    ),
    re.compile(r".{1,24}", re.DOTALL),
)


def parse_box(text: str) -> Box | None:
    """The box that a text as a whole is, as the reference reads it: a Python list of four numbers, in a literal.

    Returns:
        [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, or None for any other text.
    """
    if len(text) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's remarks on odd literals
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(v, (int, float)) for v in value):
        return None
    x1, y1, x2, y2 = value
    return [float(v) for v in value] if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 else None


def find_box(text: str) -> Box | None:
    """The first four numbers in a row, in any text and on any scale, that can be [x1, y1, x2, y2]; None without any.

    Numbers with nothing but punctuation and names such as "x1:" between them go before numbers with words between.
    """
    return next((box for between in _BETWEEN for _, box in _boxes(text[:LONGEST], between)), None)


def find_boxes(text: str) -> list[Box]:
    """All boxes in a text, on any scale, whose numbers have nothing but punctuation and names between them."""
    found, end = [], 0
    for (start, stop), box in _boxes(text[:LONGEST], _BETWEEN[0]):
        if start >= end:
            found.append(box)
            end = stop
    return found


def _boxes(text: str, between: re.Pattern) -> Iterator[tuple[tuple[int, int], Box]]:
    """Fours of numbers that can be boxes, and where each stands; they may overlap."""
    numbers = list(_NUMBER.finditer(text))
    for four in zip(numbers, numbers[1:], numbers[2:], numbers[3:], strict=False):
        gaps = [text[a.end() : b.start()] for a, b in zip(four, four[1:], strict=False)]
        x1, y1, x2, y2 = box = [float(number.group()) for number in four]
        ordered = 0 <= x1 < x2 < math.inf and 0 <= y1 < y2 < math.inf
        if ordered and all(len(gap) <= 40 and between.fullmatch(gap) for gap in gaps):
            yield (four[0].start(), four[-1].end()), box


def boxes_in_image(text: str, frame: str, width: int, height: int) -> list[Box]:
    """The boxes in an answer, as fractions of an image of that size; those whose numbers are no fractions are left out.

    Args:
        text: What a model said.
        frame: What its fractions are of: `image`, or `padded-square`.
        width: Of the image.
        height: Of the image.
    """
    found = [box for box in find_boxes(text) if max(box) <= 1]
    if frame == "padded-square":
        found = [from_padded_square(box, width, height) for box in found]
    return [
        box for box in ([min(max(x, 0.0), 1.0) for x in box] for box in found) if box[0] < box[2] and box[1] < box[3]
    ]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2]; 0 where both are empty."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def box_fractions(corners: Sequence[float], width: float, height: float) -> Box:
    """A box [x1, y1, x2, y2] in pixels as fractions of the image, rounded to two places as the reference does.

    Raises:
        ValueError: It is no box of four finite numbers, or the image has no size.
    """
    x1, y1, x2, y2 = corners
    if 0 < width < math.inf and 0 < height < math.inf:
        box = [round(x1 / width, 2), round(y1 / height, 2), round(x2 / width, 2), round(y2 / height, 2)]
        if all(map(math.isfinite, box)):
            return box
    raise ValueError(f"{[x1, y1, x2, y2]} is not a valid box in an image of {width} x {height} pixels")


def true_box(corners: Sequence[float], width: float, height: float) -> Box:
    """What `box_fractions` gives of a data set's box, which lies inside its image (two pixels may be beyond).

    Raises:
        ValueError: It does not, or its corners are in another order.
    """
    box, (x1, y1, x2, y2) = box_fractions(corners, width, height), corners
    if -2 <= x1 <= x2 <= width + 2 and -2 <= y1 <= y2 <= height + 2:
        return box
    raise ValueError(f"box {[x1, y1, x2, y2]} (x1, y1, x2, y2) is not inside its image of {width} x {height} pixels")


def from_padded_square(box: Box, width: int, height: int) -> Box:
    """A box in fractions of the square that a centred image was padded to, in fractions of the image."""
    side = max(width, height)
    left, top = (side - width) / 2, (side - height) / 2
    x1, y1, x2, y2 = box
    return [
        (x1 * side - left) / width,
        (y1 * side - top) / height,
        (x2 * side - left) / width,
        (y2 * side - top) / height,
    ]


def parse_choice(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that a text is, or begins with: "B", "b." and "B a dog" are option "B", but not "b dog"."""
    begun = re.match(r"\W*(\w+)( *\w)?", text[:LONGEST])
    if not begun:
        return None
    word, goes_on = begun.groups()
    return next(
        (i for i, option in enumerate(options) if option == word or option.lower() == word.lower() and not goes_on),
        None,
    )


def says_no(text: str) -> bool:
    """Whether POPE's official rule takes a text as a no: its first sentence holds a word "No", "no" or "not"."""
    return any(word in ("No", "no", "not") for word in text.split(".")[0].replace(",", "").split(" "))
