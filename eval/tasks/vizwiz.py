"""VizWiz-VQA: what blind people asked about photographs they took; some cannot be answered."""

from pathlib import Path

from eval.data.readers import (
    find,
    flag,
    image_folder,
    read_rows,
    reading,
    text,
    texts,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.normalise import vizwiz_prediction
from eval.scoring.scorers import vqa_accuracy
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("vizwiz",)
SHAPE = "a list of questions with image, question, answers of ten people and answerable (0 or 1)"


@or_prepared("vizwiz", "vizwiz", split="val")
def read(root: Path, split: str) -> list[Example]:
    """One example a question; its place in the list, from 0, is its id."""
    path = find(root, "vizwiz", FOLDERS, f"{split}.json", f"Annotations/{split}.json", f"annotations/{split}.json")
    images = image_folder(root, FOLDERS, split, f"{split}_images/{split}", f"{split}_images")
    rows = read_rows(path, "vizwiz", SHAPE)
    with reading(path, "vizwiz", SHAPE) as each:
        return [
            Example(
                id=str(place),
                image=f"{images}/{text(row['image'])}",
                question=row["question"],
                answer=texts([said["answer"] for said in row["answers"]]),
                info={"answerable": int(flag(row["answerable"]))},
            )
            for place, row in enumerate(each(rows))
        ]


register(
    Task(
        name="vizwiz",
        version=1,
        read=read,
        prompt=prompts.short_answer_if_any,
        answer=lambda example: Generate(),
        scorer=vqa_accuracy(vizwiz_prediction, lambda answer: answer, groups=("answerable",), unanswerable=True),
        num_examples={"val": {"": 4319}},
        files=("vizwiz/val.json", "vizwiz/val_images/"),
    )
)
