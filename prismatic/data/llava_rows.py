"""The rules of LLaVA rows: whose turn it is, which images a row has, and which "<image>" stand for them."""

from collections.abc import Iterator
from typing import Any

from prismatic.text.prompts import IMAGE_TOKEN, ROLES, to_messages
from prismatic.text.rendering import MOST_TURNS

TURNS, MARKS = "role-order problems", "<image> without image"  # kinds of problems, as verify counts them

_ORDER = ["user", "assistant"] * MOST_TURNS


def images_of(row: dict[str, Any]) -> list[str]:
    """Paths of a row's images, in the order in which the model sees them: before the text, whatever the marks."""
    image = row.get("image")
    return [] if image is None else [image] if isinstance(image, str) else list(image)


def row_problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and description of what forbids to train on a row.

    Turns alternate, user and assistant, after an optional system message, and hold an answer; a last question without
    one teaches nothing, and is no problem. "<image>" that begin or end a question stand for images, and must not be
    more than the row has; a row that has several may also say none, but not fewer.
    """
    turns = row["conversations"]
    roles = [ROLES.get(turn["from"]) for turn in turns]
    alternating = roles[roles[:1] == ["system"] :]
    if len(turns) > MOST_TURNS:
        yield TURNS, f"{len(turns):,} turns, expected at most {MOST_TURNS:,}"
    elif not alternating or alternating != _ORDER[: len(alternating)]:
        try:
            to_messages(turns)
        except ValueError as error:
            yield TURNS, str(error)
    elif len(alternating) == 1:
        yield TURNS, "a question without an answer; expected one after it"
    images = len(images_of(row))
    asked = [turn["value"] for turn, role in zip(turns, roles, strict=True) if role == "user"]
    marks = sum(text.count(IMAGE_TOKEN) for text in asked)
    if not marks:
        return
    outer = sum(map(_outer_marks, asked))
    if outer > images or marks < images:
        yield (
            MARKS,
            f'{outer if outer > images else marks} "{IMAGE_TOKEN}" for {images} images; expected one for each: '
            "correct the row, whose images are named under 'image', one path or a list",
        )


def _outer_marks(text: str) -> int:
    pieces = text.replace(IMAGE_TOKEN, f" {IMAGE_TOKEN} ").split()
    words = [place for place, piece in enumerate(pieces) if piece != IMAGE_TOKEN]
    return len(pieces) - (words[-1] - words[0] + 1 if words else 0)


def stray_marks(row: dict[str, Any]) -> int:
    """How often a row says "<image>" as a word: in answers, or in questions beyond the marks of its images."""
    asked = said = 0
    for turn in row["conversations"]:
        if count := turn["value"].count(IMAGE_TOKEN):
            asked, said = (asked + count, said) if ROLES.get(turn["from"]) == "user" else (asked, said + count)
    return said + max(0, asked - len(images_of(row)))
