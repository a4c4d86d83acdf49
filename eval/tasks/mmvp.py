"""MMVP: pairs of images that look alike to CLIP, one question about both; a pair counts if both answers are right."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_of, find, find_all, image_folder, letter_of, reading, shown, text, whole
from eval.scoring.choices import grouped, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = {"test": ("mmvp",), "corrected": ("mmvp-corrected",)}
SHAPE = "rows with Index from 1, Question, Options such as '(a) red (b) blue', and Correct Answer such as (a)"


def read(root: Path, split: str) -> list[Example]:
    """One example a row; `info["pair"]` numbers the pairs, which are rows 1 and 2, 3 and 4, ... by Index."""
    examples = []
    for path in _files(root, split):
        with reading(path, "mmvp", SHAPE) as each:
            for row in each(_rows(path, root, split)):
                index = whole(row.get("Index", row.get("lndex")), below=10**6)  # so it is misspelt in some copies
                options = text(row["Options"])
                choices = choices_of(re.split(r"\([a-z]\)", options)[1:])
                info = {"choices": choices, "options": options, "pair": str((index - 1) // 2)}
                image = only(row["image"]) if split == "corrected" else f"{_images(root)}/{index}.jpg"
                answer = letter_of(row["Correct Answer"], choices)
                examples.append(Example(str(index), image, row["Question"], answer, "", info))
    return sorted(examples, key=lambda example: int(example.id))


def _files(root: Path, split: str) -> list[Path]:
    if split == "corrected":
        return find_all(root, "mmvp", FOLDERS[split], "**/*.parquet")
    return [find(root, "mmvp", FOLDERS[split], "Questions.csv")]


def _rows(path: Path, root: Path, split: str) -> Iterator[dict]:
    if split == "corrected":
        return rows_with_images(path, root)
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    if "Correct Answer" not in (reader.fieldnames or ()):
        raise ValueError(f"its columns are {shown(', '.join(reader.fieldnames or ()))}")
    return reader


def _images(root: Path) -> str:
    return image_folder(root, FOLDERS["test"], "MMVP Images")


register(
    Task(
        name="mmvp",
        version=2,
        read=read,
        prompt=lambda example: f"{example.question} {example.info['options']}",
        answer=prompts.choose_words,
        scorer=grouped(multiple_choice(about="both of a pair right"), "pair", main=True),
        num_examples={"test": {"": 300}, "corrected": {"": 300}},
        files=("mmvp/Questions.csv", "mmvp/MMVP Images/", "mmvp-corrected/data/*.parquet"),
        chance=1 / 4,
        variants=prompts.VARIANTS,
        licence="MIT",
        note="two pairs are labelled the wrong way round in the original; split corrected reads a copy that mends them",
    )
)
