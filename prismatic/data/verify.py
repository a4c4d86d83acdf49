"""Checks images and conversations before days of training depend on them: `python -m prismatic.data.verify --help`."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from prismatic.data.containers.tars import holds_texts
from prismatic.data.conversation_source import ConversationSource
from prismatic.data.image_datasets import ImageSource, open_images
from prismatic.data.image_stores import BadImageError, MissingImageError, RefusedPathError
from prismatic.data.llava_rows import MARKS, TURNS, images_of, row_problems, stray_marks
from prismatic.data.sources import kind_of, open_source
from prismatic.text.prompts import IMAGE_TOKEN, ROLES

ROWS_PER_TASK = 64
EXAMPLES_SHOWN = 10
COUNTED = (
    "rows", "text-only rows", "rows, several images", "rows, <image> unsaid", "rows, stray <image>", "turns",
    "empty answers", "unanswered questions",
)  # fmt: skip
PROBLEMS = ("missing images", "unreadable images", "refused paths", TURNS, MARKS)

_HELP = """\
Decodes every image, on all processor cores, either
  of conversations, which are checked as well: LLaVA json or jsonl, parquet, a folder of datasets.save_to_disk,
    hf:NAME:SPLIT, tar shards with key.json or key.txt, all that --data.sources takes; give the image root besides if
    paths are relative to another folder than that of the data; or
  of a folder, of tar shards or of miniature:COUNT, as locality alignment and classification read them.

A row of LLaVA's has one image, a list of them ("image": ["a.png", "b.png"]) or none, and counts as a problem if
  an image is missing, or cannot be decoded (damaged, empty, not an image, or too many pixels to be safe);
  an image path is refused: absolute, with '..', or a symbolic link out of the image root;
  its turns do not alternate human, gpt, human, gpt, ... after an optional system turn, or hold no answer;
  more <image> begin or end its questions than it has images, or it says some <image>, but fewer than it has.
Training refuses the last two before it starts. Counted but no problem are: empty answers, which LLaVA's data has; a
last question without an answer, which teaches nothing; <image> as a word, in answers, in the midst of a question or
beyond the row's images, which training takes out; and images without any <image>: all images come before the text.
Malformed files, rows and shards end the check at once.
"""

_EPILOG = """\
examples; coco/, gqa/, ocr_vqa/, textvqa/ and vg/ lie below data/llava:
  python -m prismatic.data.verify data/llava/llava_v1_5_mix665k.json data/llava
  python -m prismatic.data.verify data/the_cauldron/ai2d
  python -m prismatic.data.verify data/imagenet/train
  python -m prismatic.data.verify 'data/in21k/in21k-{000..123}.tar'

exit code: 0 when all is well, 1 when there is a problem (the first ten of each kind are listed).
Training stops at the first bad image, or leaves it out with --data.on_bad_image skip.
"""


@dataclass
class Findings:
    """What was found in some rows.

    `problems` lists messages by the kinds of `PROBLEMS`; `sizes` counts images by (width, height), `modes` by Pillow's
    name of how they are stored.
    """

    counts: Counter = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in PROBLEMS})
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Findings") -> None:
        """Takes in the findings of other rows, keeping the first examples of each problem."""
        self.counts += other.counts
        self.sizes.update(other.sizes)
        self.modes.update(other.modes)
        for kind, messages in other.problems.items():
            self.problems[kind] += messages[: EXAMPLES_SHOWN - len(self.problems[kind])]

    def problem(self, kind: str, message: object) -> None:
        """Notes one problem."""
        self.counts[kind] += 1
        self.problems[kind].append(str(message))


def verify(location: str | Path, image_root: Path | None = None) -> Findings:
    """Checks all rows of a data set in parallel, with a progress bar.

    Raises:
        ValueError: as `open_source`.
    """
    return _in_parallel(check_rows, open_source(str(location), image_root=image_root))


def verify_images(location: str) -> tuple[Findings, list[str]]:
    """Decodes all images at a place in parallel, with a progress bar; returns the names of the classes too.

    Raises:
        ValueError: as `open_images`.
    """
    source = open_images(location)
    return _in_parallel(check_images, source), source.classes


def _in_parallel(check: Callable[[Sized, int], Findings], rows: Sized) -> Findings:
    starts = range(0, len(rows), ROWS_PER_TASK)
    findings = Findings()
    with (
        ProcessPoolExecutor(initializer=_adopt, initargs=(check, rows)) as pool,
        tqdm(total=len(rows), unit=" rows", desc="verifying") as bar,
    ):
        for part in pool.map(_check_adopted, starts):
            findings.add(part)
            bar.update(part.counts["rows"])
    return findings


_adopted: tuple[Callable[[Sized, int], Findings], Sized]  # of a worker process, which gets it once, not with every task


def _adopt(*check_and_rows) -> None:
    global _adopted
    _adopted = check_and_rows


def _check_adopted(start: int) -> Findings:
    check, rows = _adopted
    return check(rows, start)


def check_images(source: ImageSource, start: int) -> Findings:
    """Decodes the `ROWS_PER_TASK` images from row `start` on."""
    found = Findings()
    for row in range(start, min(start + ROWS_PER_TASK, len(source))):
        found.counts.update(rows=1)
        try:
            image = source.load(row)
        except BadImageError as error:
            found.problem("unreadable images", error)
        else:
            found.sizes.update([image.size])
            found.modes.update([image.mode])
    return found


def check_rows(dataset: ConversationSource, start: int) -> Findings:
    """Checks the `ROWS_PER_TASK` rows from `start` on."""
    found = Findings()
    for index in range(start, min(start + ROWS_PER_TASK, len(dataset))):
        row = dataset[index]
        turns, images = row["conversations"], len(images_of(row))
        answers = [turn["value"] for turn in turns if ROLES.get(turn["from"]) == "assistant"]
        found.counts.update(rows=1, turns=len(turns))
        found.counts["empty answers"] += sum(not answer.strip() for answer in answers)
        found.counts["unanswered questions"] += ROLES.get(turns[-1]["from"]) == "user"
        found.counts["rows, stray <image>"] += stray_marks(row) > 0
        found.counts["text-only rows"] += images == 0
        found.counts["rows, several images"] += images > 1
        found.counts["rows, <image> unsaid"] += images > 0 and not any(IMAGE_TOKEN in turn["value"] for turn in turns)
        for kind, problem in row_problems(row):
            found.problem(kind, f"{dataset.where(index)}: {problem}")
        for number in range(images):
            _check_image(dataset, index, number, found)
    return found


def _check_image(dataset: ConversationSource, index: int, number: int, found: Findings) -> None:
    try:
        found.sizes.update([dataset.load_image(index, number).size])
    except MissingImageError as error:
        found.problem("missing images", error)
    except BadImageError as error:
        found.problem("unreadable images", error)
    except RefusedPathError as error:
        found.problem("refused paths", error)


def report(findings: Findings) -> str:
    """The findings about conversations as text: counts, image sizes, and the first examples of every problem."""
    counts = findings.counts
    lines = [_line(name, counts[name]) for name in COUNTED]
    return "\n".join(lines + _size_lines(findings) + _problem_lines(findings, PROBLEMS))


def report_images(findings: Findings, classes: list[str]) -> str:
    """The findings about images as text: counts, sizes, modes, and the first unreadable ones."""
    lines = [_line("images", findings.counts["rows"]), _line("classes", len(classes)), *_size_lines(findings)]
    lines += [_line(f"  stored as {mode}", count) for mode, count in findings.modes.most_common()]
    return "\n".join(lines + _problem_lines(findings, ["unreadable images"]))


def _line(name: str, count: int) -> str:
    return f"{name:<22}{count:>12,}"


def _size_lines(findings: Findings) -> list[str]:
    lines = [_line("images decoded", findings.sizes.total())]
    if findings.sizes:
        width, height = np.repeat(list(findings.sizes), list(findings.sizes.values()), axis=0).T
        for name, side in (("width", width), ("height", height)):
            low, middle, high = np.percentile(side, (0, 50, 100)).astype(int)
            lines.append(f"  {name + ' (pixels)':<20}{low:>12,} smallest {middle:>8,} median {high:>8,} largest")
    return lines


def _problem_lines(findings: Findings, kinds: Sequence[str]) -> list[str]:
    lines = []
    for kind in kinds:
        lines.append(_line(kind, findings.counts[kind]))
        lines += [f"  {message}" for message in findings.problems[kind]]
        if findings.counts[kind] > EXAMPLES_SHOWN:
            lines.append(f"  ... and {findings.counts[kind] - EXAMPLES_SHOWN:,} more")
    wrong = sum(findings.counts[kind] for kind in kinds)
    return [*lines, f"{wrong:,} problems" if wrong else "no problems"]


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m prismatic.data.verify",
        description=_HELP,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="the place of conversations, or of images")
    parser.add_argument("root", type=Path, nargs="?", help="of conversations: folder that image paths are relative to")
    arguments = parser.parse_args()
    try:
        kind = None if arguments.data.startswith("miniature:") else kind_of(arguments.data)
        if arguments.root is not None or kind and (kind != "tar" or holds_texts(arguments.data)):
            findings = verify(arguments.data, arguments.root)
            text = report(findings)
        else:
            findings, classes = verify_images(arguments.data)
            text = report_images(findings, classes)
    except ValueError as error:
        parser.exit(1, f"error: {error}\n")
    print(text)
    return int(any(findings.counts[kind] for kind in PROBLEMS))


if __name__ == "__main__":
    raise SystemExit(main())
