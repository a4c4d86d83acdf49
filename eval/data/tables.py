"""What all files of rows with images inside have in common."""

import base64
from collections.abc import Iterator
from typing import Any, Protocol

from eval.data.readers import shown

Place = tuple[int, str, int | None]  # row, column, and number in the list that it holds


class Table(Protocol):
    """A file of rows that hold images."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, where columns of images hold the places of these, of which there may be none."""

    def read(self, place: Place) -> bytes:
        """An image file, as it is stored.

        Raises:
            ValueError: There is none, or it is no valid base64.
        """


def decoded(text: bytes) -> bytes:
    """The file that base64 stands for, also as a data URL.

    Raises:
        ValueError: It is no valid base64, or empty.
    """
    body = b"".join(text.partition(b"base64,")[2].split() if text.startswith(b"data:") else text.split())
    try:
        content = base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ValueError(f"{shown(text[:40].decode(errors='replace'))} is no valid base64 ({error})") from None
    if not content:
        raise ValueError("an image in base64 is empty")
    return content
