"""The layouts in which people keep conversations about images: a function each makes LLaVA's row of one of theirs."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from prismatic.text.prompts import IMAGE_TOKEN
from vision_backbones.names import suggest

IMAGES = ("images", "image")  # columns that images are in: one, or a list of them
Turns = list[dict[str, Any]]


class Layout(NamedTuple):
    """How rows are read: `columns`, of which one has to be there, and `turns`, which gives a row's conversation."""

    columns: tuple[str, ...]
    turns: Callable[[dict[str, Any]], Turns]
    expected: str


def llava(row: dict[str, Any]) -> Turns:
    """Turns `from` and `value`, or `role` and `content`: LLaVA, LLaVA-NeXT, LLaVA-OneVision."""
    return _records(row["conversations"])


def cauldron(row: dict[str, Any]) -> Turns:
    """Pairs `user` and `assistant`: The Cauldron, FineVision."""
    return [
        {"from": role, "value": pair[name]}
        for pair in _records(row["texts"])
        for role, name in (("human", "user"), ("gpt", "assistant"))
    ]


def messages(row: dict[str, Any]) -> Turns:
    """Messages `role` and `content`, a text or parts of `type` "text" and "image": OpenAI's API, TRL."""
    return [{"from": turn["role"], "value": _text(turn["content"])} for turn in _records(row["messages"])]


def caption(row: dict[str, Any]) -> Turns:
    """A text about an image, without a question: what stage align is trained on."""
    text = row["text"] if row.get("caption") is None else row["caption"]
    return [{"from": "human", "value": IMAGE_TOKEN}, {"from": "gpt", "value": text}]


LAYOUTS = {
    "llava": Layout(("conversations",), llava, "turns with 'from' and 'value', or 'role' and 'content'"),
    "cauldron": Layout(("texts",), cauldron, "pairs of strings 'user' and 'assistant'"),
    "messages": Layout(("messages",), messages, "messages with 'role' and 'content'"),
    "caption": Layout(("caption", "text"), caption, "a string"),
}


def layout_of(columns: Collection[str], asked: str, location: object) -> str:
    """The name of the layout of a data set with these columns: the one asked for, or with "auto" the first that fits.

    Raises:
        ValueError: there is none of that name, or its columns are not there.
    """
    if asked != "auto" and asked not in LAYOUTS:
        raise ValueError(f"unknown layout {asked!r}: {suggest(asked, ['auto', *LAYOUTS])}")
    for name in LAYOUTS if asked == "auto" else (asked,):
        if any(column in columns for column in LAYOUTS[name].columns):
            return name
    known = ", ".join(f"{name} ({' or '.join(layout.columns)})" for name, layout in LAYOUTS.items())
    raise ValueError(
        f"{location} has the columns {', '.join(sorted(columns)) or '(none)'}; expected those of layout "
        f"{asked if asked != 'auto' else 'llava, cauldron, messages or caption'}; known layouts: {known}"
    )


def image_column(columns: Collection[str], location: object) -> str | None:
    """The column that images are in, None without one.

    Raises:
        ValueError: there are two.
    """
    found = [name for name in IMAGES if name in columns]
    if len(found) > 1:
        raise ValueError(f"{location} has the columns image and images; expected one of them: remove the other")
    return found[0] if found else None


def as_llava(row: dict[str, Any], layout: str, identity: str, where: str) -> dict[str, Any]:
    """A row of any layout as LLaVA's: `id`, `image` (the list of names of its images) and `conversations`.

    Args:
        row: its columns, without pixels: an embedded image is a dict of its path, or of None.
        layout: a name among `LAYOUTS`.
        identity: of a row that names none.
        where: data set and row, for messages.

    Raises:
        ValueError: a column is absent or of another type, or an image is no file; one line that names row and column.
    """
    columns, turns, expected = LAYOUTS[layout]
    column = next((name for name in columns if row.get(name) is not None), None)
    if column is None:
        raise ValueError(f"{where} has nothing in column {' or '.join(columns)}; expected {expected}")
    try:
        conversation = [_turn(turn) for turn in turns(row)]
    except (KeyError, TypeError, ValueError):
        conversation = []
    if not conversation:
        raise ValueError(f"{where} has in column {column} {_shown(row[column])}; expected {expected}: correct the row")
    given = row.get("id")
    return {
        "id": identity if given is None else given,
        "image": _images(row, where) or (_parts(row, where) if layout == "messages" else []),
        "conversations": conversation,
    }


def _turn(turn: dict[str, Any]) -> dict[str, str]:
    role, text = turn.get("from") or turn["role"], turn.get("value", turn.get("content"))
    if not isinstance(role, str) or not isinstance(text, str):
        raise TypeError(turn)
    return {"from": role, "value": text}


def _records(value: Any) -> list[dict[str, Any]]:
    """A list of dicts, which `datasets` had for a time as a dict of lists."""
    if isinstance(value, dict):
        return [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(record, dict) for record in value):
        raise TypeError(value)
    return value


def _text(content: Any) -> str:
    """The text of a message; an image among its parts becomes a mark, whose number is checked against the images."""
    if isinstance(content, str):
        return content
    return "".join(IMAGE_TOKEN if _is_image(part) else part["text"] for part in _records(content))


def _is_image(part: dict[str, Any]) -> bool:
    return part["type"] in ("image", "image_url")


def _images(row: dict[str, Any], where: str) -> list[str]:
    """Names of the images in the columns `image` or `images`: their paths, or where they are in the row."""
    column = next((name for name in IMAGES if row.get(name) is not None), None)
    if column is None:
        return []
    if sum(bool(row.get(name)) for name in IMAGES) > 1:
        raise ValueError(f"{where} has image and images; expected one of them: remove the other")
    given = row[column] if isinstance(row[column], list) else [row[column]]
    return [_named(image, f"{column}[{number}]", where) for number, image in enumerate(given)]


def _named(image: Any, place: str, where: str) -> str:
    if isinstance(image, bytes):
        return place
    if isinstance(image, dict) and image.keys() <= {"path", "bytes"}:
        image = image.get("path") or place
    if not isinstance(image, str) or not image or "://" in image or image.startswith("data:"):
        raise ValueError(f"{where} has in {place} {_shown(image)}; expected an image, or the path of a file")
    return image


def _parts(row: dict[str, Any], where: str) -> list[str]:
    """Paths of the images that parts of messages name, where no column holds images."""
    found = []
    for turn in _records(row["messages"]):
        for part in _records(turn["content"]) if not isinstance(turn["content"], str) else ():
            if _is_image(part):
                image = part.get(part["type"])
                image = image.get("url") if isinstance(image, dict) and "url" in image else image
                if image is not None:
                    found.append(_named(image, f"messages, image {len(found)}", where))
    return found


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
