"""GQA: composed questions about scenes, one right answer."""

from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    name_of,
    read_json,
    reading,
    text,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.normalise import gqa_prediction
from eval.scoring.scorers import exact_match
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("gqa",)
SHAPE = "an object of questions by id, with question, answer and imageId"


@or_prepared("gqa", "gqa", split="testdev_balanced")
def read(root: Path, split: str) -> list[Example]:
    """One example a question, in the order of the file; ids keep their leading zeros."""
    name = f"{split}_questions.json"
    path = find(root, "gqa", FOLDERS, name, f"questions1.2/{name}", f"questions/{name}")
    images = image_folder(root, FOLDERS, "images")
    questions = read_json(path, "gqa", SHAPE)
    with reading(path, "gqa", SHAPE) as each:
        return [
            Example(id, f"{images}/{name_of(row['imageId'])}.jpg", row["question"], text(row["answer"]))
            for id, row in each(questions.items())
        ]


register(
    Task(
        name="gqa",
        version=1,
        read=read,
        prompt=prompts.short_answer,
        answer=lambda example: Generate(),
        scorer=exact_match(gqa_prediction),
        num_examples={"testdev_balanced": {"": 12578}},
        files=("gqa/testdev_balanced_questions.json", "gqa/images/"),
    )
)
