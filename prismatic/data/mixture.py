"""Several sources of conversations as one, in given shares or numbers of rows."""

import functools
import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from prismatic.data.conversation_source import ConversationSource
from prismatic.data.image_stores import part
from prismatic.data.sources import open_source

TOLERANCE = Fraction(1, 10**6)  # of the sum of shares


class Part(NamedTuple):
    """A source of a mixture as it is written: `LOCATION`, `LOCATION@0.3` (a share) or `LOCATION@20000` (rows)."""

    location: str
    share: Fraction | None = None
    rows: int | None = None


def parse_part(text: str) -> Part:
    """What a source of a mixture is called, and how much is taken of it: all, a share of the mixture, or rows.

    Raises:
        ValueError: the amount is no positive number.
    """
    location, at, amount = text.rpartition("@")
    if not at:
        return Part(text)
    if not location or not re.fullmatch(r"\d+|\d*\.\d+", amount) or not Fraction(amount):
        raise ValueError(
            f"--data.sources {text!r}: expected LOCATION, LOCATION@0.3 (its share of the mixture) or LOCATION@20000, "
            "its number of rows"
        )
    return Part(location, share=Fraction(amount)) if "." in amount else Part(location, rows=int(amount))


class Mixture(ConversationSource):
    """Rows of several sources, one source after the other; samplers bring them into order.

    Of a source that is asked for more rows than it has, all are there as often as they fit, and some once more; which
    ones is drawn from the seed, without replacement, and so it is of one that is asked for fewer.
    """

    def __init__(self, sources: Sequence[ConversationSource], rows: Sequence[int], seed: int):
        """Takes the sources, the number of rows of each in the mixture, and the seed of the run."""
        self._parts, self.rows = list(sources), list(rows)
        self.location = " + ".join(f"{source.location}" for source in sources)
        self.files = [file for source in sources for file in source.files]
        self._starts = np.cumsum([0, *rows])
        self._order = [
            _drawn(len(source), count, [seed, number])
            for number, (source, count) in enumerate(zip(sources, rows, strict=True))
        ]
        pairs = list(zip(sources, self._order, strict=True))
        self.image_counts = np.concatenate([source.image_counts[order] for source, order in pairs])
        self.word_counts = np.concatenate([source.word_counts[order] for source, order in pairs])
        self.stray_rows = sum(source.stray_rows for source in sources)

    def _find(self, index: int) -> tuple[ConversationSource, int]:
        """The source of a row, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = part(self._starts, index)
        return self.parts[number], int(self._order[number][index - self._starts[number]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, row = self._find(index)
        return source[row]

    @property
    def parts(self) -> list[ConversationSource]:  # noqa: D102
        return self._parts

    def where(self, index: int) -> str:  # noqa: D102
        source, row = self._find(index)
        return source.where(row)

    @functools.cached_property
    def digest(self) -> str:  # noqa: D102
        found = [f"{source.digest} {count}" for source, count in zip(self.parts, self.rows, strict=True)]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()

    def check_rows(self) -> None:  # noqa: D102
        for source in self.parts:
            source.check_rows()

    def check_images(self, some: bool = False) -> None:  # noqa: D102
        for source in self.parts:
            source.check_images(some)

    def load_image(self, index: int, number: int = 0) -> Image.Image:  # noqa: D102
        source, row = self._find(index)
        return source.load_image(row, number)


def _drawn(rows: int, count: int, seed: list[int]) -> np.ndarray:
    passes, rest = divmod(count, rows)
    some = np.sort(np.random.default_rng(seed).permutation(rows)[:rest])
    return np.concatenate([np.tile(np.arange(rows), passes), some])


def rows_of(parts: Sequence[Part], lengths: Sequence[int]) -> list[int]:
    """How many rows of each source a mixture has: those asked for, all, or by shares the most that repeat no row.

    Raises:
        ValueError: some have a share and some have none, shares do not add up to 1, or one is less than a row.
    """
    if not any(part.share for part in parts):
        return [length if part.rows is None else part.rows for part, length in zip(parts, lengths, strict=True)]
    if without := [part.location for part in parts if not part.share]:
        raise ValueError(f"--data.sources: {without[0]} has no share, others have: give all of them one, or none")
    total = sum(part.share for part in parts)
    if abs(total - 1) > TOLERANCE:
        shown = " + ".join(f"{float(part.share):g}" for part in parts)
        raise ValueError(f"--data.sources: the shares {shown} add up to {float(total):g}; expected 1")
    most = min(length / part.share for part, length in zip(parts, lengths, strict=True))
    rows = [int(most * part.share) for part in parts]
    if 0 in rows:
        raise ValueError(
            f"--data.sources: {parts[rows.index(0)].location} would have less than one of {int(most):,} rows: raise "
            "its share, or give numbers of rows"
        )
    return rows


def open_sources(
    texts: Sequence[str],
    layout: str = "auto",
    image_root: str | Path | None = None,
    *,
    exif_rotate: bool = False,
    seed: int = 0,
) -> ConversationSource:
    """The source, or the mixture of sources, that `--data.sources` names.

    Args:
        texts: each as `parse_part` reads it.
        layout: see `open_source`; of all of them.
        image_root: see `open_source`; of all of them.
        exif_rotate: see `open_source`.
        seed: decides which rows are taken of a source of which not all are.

    Raises:
        ValueError: as `open_source` and `rows_of`; or two sources read the same file.
    """
    parts = [parse_part(text) for text in texts]
    if len(parts) == 1 and parts[0].share:
        raise ValueError(f"--data.sources: {parts[0].location} is all there is; expected no share, or more sources")
    sources = [open_source(part.location, layout, image_root, exif_rotate=exif_rotate) for part in parts]
    seen: dict[Path, str] = {}
    for one, source in zip(parts, sources, strict=True):
        for file in {file.resolve() for file in source.files}:
            if file in seen:
                raise ValueError(
                    f"--data.sources: {file} is listed twice, by {seen[file]} and {one.location}: leave one out, "
                    "or ask for more rows of it"
                )
            seen[file] = one.location
    if len(parts) == 1 and parts[0].rows is None:
        return sources[0]
    return Mixture(sources, rows_of(parts, [len(source) for source in sources]), seed)


def drawn_held_out(text: str) -> str | None:
    """The held-out questions that belong to a source of the miniature world; None of any other."""
    location = parse_part(text).location
    if not location.startswith("miniature:"):
        return None
    from prismatic.miniature.llava_writer import miniature_llava

    return str(miniature_llava(int(location.removeprefix("miniature:"))) / "held_out.json")
