"""VSR (zero-shot split): whether a statement about where things are is true."""

from dataclasses import replace
from pathlib import Path

from eval.data.converses import converse
from eval.data.readers import (
    find,
    flag,
    image_folder,
    read_rows,
    reading,
    text,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.scorers import choice
from eval.task import Choose, Example, Task, register
from eval.tasks import prompts

FOLDERS = ("vsr",)
SHAPE = "JSON lines with image, caption, label (0 or 1) and relation"
OPTIONS = ("True", "False")


@or_prepared("vsr", "vsr", split="test")
def read(root: Path, split: str) -> list[Example]:
    """One example a statement; its line number, from 0, is its id."""
    path = find(root, "vsr", FOLDERS, f"{split}.jsonl")
    images = image_folder(root, FOLDERS, "vsr_images", "images")
    rows = read_rows(path, "vsr", SHAPE)
    with reading(path, "vsr", SHAPE) as each:
        return [
            Example(
                id=str(line),
                image=f"{images}/{text(row['image'])}",
                question=row["caption"],
                answer=str(flag(row["label"])),
                info={"relation": text(row["relation"])},
            )
            for line, row in enumerate(each(rows))
        ]


def read_swapped(root: Path, split: str) -> list[Example]:
    """Those statements that can be said the other way round, so said; ids and truths are those of the originals."""
    turned = ((example, converse(example.question, example.info["relation"])) for example in read(root, split))
    return [replace(example, question=said) for example, said in turned if said]


register(
    Task(
        name="vsr",
        version=1,
        read=read,
        prompt=prompts.true_or_false,
        answer=lambda example: Choose(OPTIONS),
        scorer=choice(OPTIONS),
        num_examples={"test": {"": 1222}, "dev": {"": 340}},
        files=("vsr/test.jsonl", "vsr/images/"),
        chance=0.5,
        majority=629 / 1222,
        variants={
            "swapped": {"version": 2, "read": read_swapped, "num_examples": {"test": {}, "dev": {}}, "majority": None}
        },
        note="+swapped exchanges the two things and turns the relation round: answers should stay (eval robustness)",
    )
)
