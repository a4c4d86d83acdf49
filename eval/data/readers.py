"""Finding and reading what users downloaded, under the names that archives or the reference's preparation give it."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import ascii_uppercase
from typing import Any


class MissingData(ValueError):
    """Nothing lies where data should."""


def find(root: Path, task: str, folders: Sequence[str], *names: str) -> Path:
    """The first existing file or folder called one of `names` in a folder of the data root, or below its `download`.

    Raises:
        MissingData: None is there.
    """
    for folder in _places(root, folders):
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise _missing(root, task, folders, names)


def find_all(root: Path, task: str, folders: Sequence[str], *patterns: str) -> list[Path]:
    """The files that fit the first of these patterns that any fits, in a folder as `find` looks for, sorted.

    Raises:
        MissingData: None is there.
    """
    for folder in _places(root, folders):
        for pattern in patterns:
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return found
    raise _missing(root, task, folders, patterns)


def image_folder(root: Path, folders: Sequence[str], *names: str) -> str:
    """Path, relative to the data root, of the first image folder there is; of the last if none is."""
    places = _places(root, folders)
    there = [folder / name for folder in places for name in names if (folder / name).is_dir()]
    home = next((folder for folder in places if folder.is_dir()), places[0])
    return (there[0] if there else home / names[-1]).relative_to(root).as_posix()


@contextmanager
def reading(path: Path, task: str, shape: str) -> Iterator[Callable[[Iterable], Iterator]]:
    """Turns whatever goes wrong inside, while a file is taken apart, into a ValueError that names file and `shape`.

    Returns a function that passes rows on, and by which the error also tells the row, counted from 0.
    """
    reached = None

    def each(rows: Iterable) -> Iterator:
        nonlocal reached
        for number, row in enumerate(rows):
            reached = number
            yield row
        reached = None

    try:
        yield each
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, csv.Error) as error:
        reason = (f"no {error}" if isinstance(error, KeyError) else str(error))[:300]
        where = path if reached is None else f"{path}: row {reached}"
        raise ValueError(
            f"{where} is not as expected ({reason}): expected {shape}; fetch it again with "
            f"python -m eval prepare {task}"
        ) from error


def text(value: Any) -> str:
    """A text, as it is.

    Raises:
        TypeError: It is anything else.
    """
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not a valid string")
    return value


def filled(value: Any) -> str:
    """A text, as it is, that is more than white space.

    Raises:
        TypeError: It is anything else.
        ValueError: It is blank.
    """
    if not text(value).strip():
        raise ValueError("an empty text")
    return value


def texts(value: Any) -> list[str]:
    """A list of texts, as it is.

    Raises:
        TypeError: It is anything else.
        UnicodeEncodeError: A text holds half a surrogate pair.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{shown(value)} is not a valid list of strings")
    "".join(value).encode()
    return value


def name_of(value: Any) -> str:
    """An id, a text or a whole number, as text.

    Raises:
        TypeError: It is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{shown(value)} is neither a string nor a whole number")
    return str(value)


def whole(value: Any, below: int | None = None) -> int:
    """A whole number, also one that is written as text or with .0; from 0 to `below` - 1 where that is given.

    Raises:
        ValueError: It is anything else.
    """
    try:
        number = int(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or (not isinstance(value, str) and number != value):
        raise ValueError(f"{shown(value)} is not a valid whole number")
    if below is not None and not 0 <= number < below:
        raise ValueError(f"{number}, expected 0 to {below - 1}")
    return number


def index_of(value: Any) -> str:
    """The index of a row as text, also where pandas wrote it as 1.0, as it does if a column has gaps.

    Raises:
        TypeError: It is no text.
    """
    return text(value).strip().removesuffix(".0")


def flag(value: Any) -> bool:
    """Yes or no: true, 1, "true", "yes" and "1" are yes, their opposites no.

    Raises:
        ValueError: It is anything else.
    """
    said = value.strip().lower() if isinstance(value, str) else value
    if isinstance(said, bool | int | str) and said in (True, "true", "yes", "1"):
        return True
    if isinstance(said, bool | int | str) and said in (False, "false", "no", "0"):
        return False
    raise ValueError(f"{shown(value)} is neither true nor false")


def shown(value: Any) -> str:
    """A value of a stranger's file for an error; what holds other values by its type alone."""
    return ascii(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def read_json(path: Path, task: str, shape: str) -> Any:
    """Content of a JSON file.

    Raises:
        ValueError: It is not valid JSON.
    """
    with reading(path, task, shape):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def read_rows(path: Path, task: str, shape: str) -> list[dict]:
    """Rows of a file of JSON lines, whatever its name, or of one JSON list.

    Raises:
        ValueError: It is neither.
    """
    with reading(path, task, shape) as each:
        return parse_rows(path.read_text(encoding="utf-8-sig"), each)


def parse_rows(text: str, each: Callable[[Iterable], Iterator] = iter) -> list[dict]:
    """Rows of a text of JSON lines, or of one JSON list; `each` is passed the lines.

    Raises:
        ValueError: It is neither.
    """
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in each(line for line in text.split("\n") if line.strip())]


def choices_of(values: Any) -> list[str]:
    """What can be chosen: two texts or more, none of them empty, without white space around them.

    Raises:
        ValueError: These are none.
    """
    choices = [choice.strip() for choice in texts(values)]
    if not 2 <= len(choices) <= len(ascii_uppercase) or not all(choices):
        raise ValueError(f"{shown(', '.join(choices))} are {len(choices)} options, expected 2 to 26, none empty")
    return choices


def choices_in_columns(row: Mapping[str, Any]) -> tuple[list[str], str]:
    """What can be chosen in a row with columns A, B, ... and `answer`, and the letter of the answer among these.

    Columns that are empty or "nan" are left out, and those after them move up.

    Raises:
        ValueError: Fewer than two are left, or the answer is none of them.
    """
    cells = {letter: row[letter] for letter in ascii_uppercase[:6] if letter in row}
    named = [letter for letter, cell in cells.items() if text(cell).strip().lower() not in ("", "nan")]
    choices = choices_of([cells[letter] for letter in named])
    answer = letter_of(row["answer"], list(cells))
    if answer not in named:
        raise ValueError(f"answer {shown(row['answer'])}, but that option is empty")
    return choices, ascii_uppercase[named.index(answer)]


def listed_choices(question: str) -> list[str]:
    """What a question lists on lines such as "A. left", from A on; nothing if it lists none."""
    found = re.findall(r"(?m)^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", question)
    in_order = "".join(letter for letter, _ in found) == ascii_uppercase[: len(found)]
    return [choice for _, choice in found] if in_order else []


def letter_of(value: Any, choices: Sequence[str]) -> str:
    """The letter of one of the choices, also from "(b)" or "b", as a capital.

    Raises:
        ValueError: It is none of theirs.
    """
    letter = text(value).strip().strip("().").upper()
    if len(letter) != 1 or letter not in ascii_uppercase[: len(choices)]:
        raise ValueError(f"answer {shown(value)}, expected the letter of one of {len(choices)} options")
    return letter


def _missing(root: Path, task: str, folders: Sequence[str], names: Sequence[str]) -> MissingData:
    return MissingData(
        f"found no {' or '.join(names)} in {root / 'download' / folders[0]} or {root / folders[0]}: "
        f"fetch it with python -m eval prepare {task} --data_root {root}"
    )


def _places(root: Path, folders: Sequence[str]) -> list[Path]:
    return [root / parent / folder for folder in folders for parent in ("download", "")]
