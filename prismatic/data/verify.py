"""Checks a LLaVA data set before days of training depend on it: `python -m prismatic.data.verify --help`."""

import argparse
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prismatic.data.sources import BadImageError, ConversationDataset, MissingImageError, RefusedPathError
from prismatic.models.prompts import to_messages

ROWS_PER_TASK = 64
EXAMPLES_SHOWN = 10
PROBLEMS = ("missing images", "unreadable images", "refused paths", "role-order problems")

_HELP = """\
Decodes every image and checks every conversation of a LLaVA json or jsonl file, on all processor cores.

A row counts as a problem if
  its image is missing, or cannot be decoded (damaged, empty, not an image, or too many pixels to be safe);
  its image path is refused: absolute, with '..', or a symbolic link out of the image root;
  its turns do not alternate human, gpt, human, gpt, ... up to an answer.
Empty answers are counted but are no problem: LLaVA's data has them. Malformed files and rows end the check at once.
"""

_EPILOG = """\
example, with coco/, gqa/, ocr_vqa/, textvqa/ and vg/ below data/llava:
  python -m prismatic.data.verify data/llava/llava_v1_5_mix665k.json data/llava

exit code: 0 when all is well, 1 when there is a problem (the first ten of each kind are listed).
Finetuning stops at the first bad image, or leaves such rows out with --data.on_bad_image skip.
"""


@dataclass
class Findings:
    """What was found in some rows; `problems` lists messages by the kinds of `PROBLEMS`."""

    counts: Counter = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: "Findings") -> None:
        """Takes in the findings of other rows, keeping the first examples of each problem."""
        self.counts += other.counts
        self.sizes += other.sizes
        for kind, messages in other.problems.items():
            self.problems[kind] += messages[: EXAMPLES_SHOWN - len(self.problems[kind])]

    def problem(self, kind: str, message: object) -> None:
        """Notes one problem."""
        self.counts[kind] += 1
        self.problems[kind].append(str(message))


def verify(annotations: Path, image_root: Path) -> Findings:
    """Checks all rows of a data set in parallel, with a progress bar.

    Raises:
        ValueError: the annotation file is absent or malformed.
    """
    dataset = ConversationDataset(annotations, image_root)
    starts = range(0, len(dataset), ROWS_PER_TASK)
    findings = Findings()
    with (
        ProcessPoolExecutor(initializer=_adopt, initargs=(dataset,)) as pool,
        tqdm(total=len(dataset), unit=" rows", desc="verifying") as bar,
    ):
        for part in pool.map(_check_adopted, starts):
            findings.add(part)
            bar.update(part.counts["rows"])
    return findings


_adopted: ConversationDataset  # of a worker process, which gets it once rather than with every task


def _adopt(dataset: ConversationDataset) -> None:
    global _adopted
    _adopted = dataset


def _check_adopted(start: int) -> Findings:
    return check_rows(_adopted, start)


def check_rows(dataset: ConversationDataset, start: int) -> Findings:
    """Checks the `ROWS_PER_TASK` rows from `start` on."""
    found = Findings()
    for index in range(start, min(start + ROWS_PER_TASK, len(dataset))):
        row = dataset[index]
        found.counts.update(rows=1, turns=len(row["conversations"]))
        found.counts["empty answers"] += sum(
            turn["from"] == "gpt" and not turn["value"].strip() for turn in row["conversations"]
        )
        _check_roles(row, f"{dataset.annotations}: row {index} (id {row['id']!r})", found)
        if row["image"] is None:
            found.counts["text-only rows"] += 1
        else:
            _check_image(dataset, index, found)
    return found


def _check_roles(row: dict, where: str, found: Findings) -> None:
    try:
        if to_messages(row["conversations"])[-1]["role"] != "assistant":
            found.problem("role-order problems", f"{where}: the last turn is a question; expected an answer after it")
    except ValueError as error:
        found.problem("role-order problems", f"{where}: {error}")


def _check_image(dataset: ConversationDataset, index: int, found: Findings) -> None:
    try:
        found.sizes.append(dataset.load_image(index).size)
    except MissingImageError as error:
        found.problem("missing images", error)
    except BadImageError as error:
        found.problem("unreadable images", error)
    except RefusedPathError as error:
        found.problem("refused paths", error)


def report(findings: Findings) -> str:
    """The findings as text: counts, image sizes, and the first examples of every problem."""
    counts = findings.counts
    lines = [f"{name:<22}{counts[name]:>12,}" for name in ("rows", "text-only rows", "turns", "empty answers")]
    lines.append(f"{'images decoded':<22}{len(findings.sizes):>12,}")
    if findings.sizes:
        width, height = np.array(findings.sizes).T
        for name, side in (("width", width), ("height", height)):
            low, middle, high = np.percentile(side, (0, 50, 100)).astype(int)
            lines.append(f"  {name + ' (pixels)':<20}{low:>12,} smallest {middle:>8,} median {high:>8,} largest")
    for kind in PROBLEMS:
        lines.append(f"{kind:<22}{counts[kind]:>12,}")
        lines += [f"  {message}" for message in findings.problems[kind]]
        if counts[kind] > EXAMPLES_SHOWN:
            lines.append(f"  ... and {counts[kind] - EXAMPLES_SHOWN:,} more")
    wrong = sum(counts[kind] for kind in PROBLEMS)
    lines.append(f"{wrong:,} problems" if wrong else "no problems")
    return "\n".join(lines)


def main() -> int:
    """Command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        "python -m prismatic.data.verify",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", type=Path, metavar="json", help="one JSON array of rows, or one row a line")
    parser.add_argument("image_root", type=Path, metavar="root", help="folder that image paths are relative to")
    arguments = parser.parse_args()
    try:
        findings = verify(arguments.annotations, arguments.image_root)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    print(report(findings))
    return int(any(findings.counts[kind] for kind in PROBLEMS))


if __name__ == "__main__":
    raise SystemExit(main())
