"""POPE (COCO): whether a thing is in the picture, asked about random, popular or misleading things."""

from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    name_of,
    read_rows,
    reading,
    text,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.scorers import yes_no
from eval.task import Choose, Example, Task, register
from eval.tasks import prompts

FOLDERS = ("pope",)
SHAPE = "JSON lines with question_id, image, text and label (yes or no)"
LABELS = {"yes": "Yes", "no": "No"}


@or_prepared("pope", "pope", split="test")
def read(root: Path, split: str) -> list[Example]:
    """One example a question; ids restart in every file, and are told apart by subset."""
    images = image_folder(root, FOLDERS, "val_images/val2014", "val2014", "val_images")
    examples = []
    for subset in ("adversarial", "popular", "random"):
        path = find(root, "pope", FOLDERS, f"coco_pope_{subset}.json")
        rows = read_rows(path, "pope", SHAPE)
        with reading(path, "pope", SHAPE) as each:
            for row in each(rows):
                id, image = f"{subset}-{name_of(row['question_id'])}", f"{images}/{text(row['image'])}"
                examples.append(Example(id, image, row["text"], LABELS[row["label"]], subset))
    return examples


register(
    Task(
        name="pope",
        version=1,
        read=read,
        prompt=prompts.short_answer,
        answer=lambda example: Choose(("Yes", "No")),
        scorer=yes_no(),
        # of the files that the reference pins; the random one has 3,000 questions in later versions
        num_examples={"test": {"adversarial": 3000, "popular": 3000, "random": 2910}},
        files=("pope/coco_pope_{adversarial,popular,random}.json", "pope/val_images/"),
        chance=0.5,
        majority=(1 / 2 + 1 / 2 + 1500 / 2910) / 3,
    )
)
