"""Metrics of training, read on as they are written."""

import io
import threading
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipes.web.run_files import Folder, Unreadable, number, row_of

MOST_BYTES = 1 << 30  # of a metrics.jsonl
MOST_KNOWN = 32  # files that are not read from their beginning
LONGEST = 1 << 20  # bytes of a line
SHARES = {"held_out_accuracy": "held-out accuracy", "top1": "top-1", "macro_recall": "macro recall"}


@dataclass(frozen=True)
class Curve:
    """What a `metrics.jsonl` says.

    Attributes:
        steps: Optimizer steps that have a training loss.
        losses: Training losses, at `steps`.
        rates: Learning rates, at `steps`.
        points: What is measured now and then, `validation_loss` and those of `SHARES`: steps and values.
    """

    steps: np.ndarray
    losses: np.ndarray
    rates: np.ndarray
    points: dict[str, tuple[np.ndarray, np.ndarray]]


class Curves:
    """Reads curves; of a file that it knows, only what was added to it. Threads may share it."""

    def __init__(self, files: Folder):
        self.files, self._known, self._lock = files, {}, threading.Lock()

    def read(self, path: Path) -> Curve:
        """The curve in a file, an empty one where there is none.

        Raises:
            Unreadable: See `Folder.open`; or it is large.
        """
        with self._lock:
            so_far = self._known.pop(path, _SoFar())
            try:
                with self.files.open(path) as file:
                    if (size := file.seek(0, io.SEEK_END)) > MOST_BYTES:
                        raise Unreadable(f"{path.name} is too large to show ({size >> 20:,} MB)")
                    if not so_far.continues(file):
                        so_far = _SoFar()
                    so_far.read(file)
            except FileNotFoundError:
                so_far = _SoFar()
            self._known[path] = so_far
            if len(self._known) > MOST_KNOWN:  # the one that was asked for longest ago
                del self._known[next(iter(self._known))]
            return so_far.curve()


@dataclass
class _SoFar:
    """What was read of a file: bytes up to the end of a line, the end of that line, and what the lines say."""

    size: int = 0
    end: bytes = b""
    lines: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in ("step", "loss", "rate")})
    points: dict[str, tuple[array, array]] = field(default_factory=dict)

    def continues(self, file) -> bool:
        """Whether the file begins as it did: a run that resumes writes it anew."""
        file.seek(self.size - len(self.end))
        return file.read(len(self.end)) == self.end

    def read(self, file) -> None:
        """Takes the lines that are new."""
        file.seek(self.size)
        rest = b""
        while len(rest) <= LONGEST and (block := file.read(LONGEST)):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self.size += len(line) + 1
                self.end = line[-64:] + b"\n"
                if row := row_of(line):
                    self._take(row)

    def _take(self, row: dict) -> None:
        if (loss := number(row.get("loss"))) is not None:
            values = row["step"], loss, number(row.get("learning_rate")) or 0.0
            for line, value in zip(self.lines.values(), values, strict=True):
                line.append(value)
        for name in ("validation_loss", *SHARES):
            if (value := number(row.get(name))) is not None:
                steps, values = self.points.setdefault(name, (array("d"), array("d")))
                steps.append(row["step"])
                values.append(value)

    def curve(self) -> Curve:
        """A copy, which stays as it is."""
        points = {name: (np.array(steps), np.array(values)) for name, (steps, values) in self.points.items()}
        return Curve(*map(np.array, self.lines.values()), points)
