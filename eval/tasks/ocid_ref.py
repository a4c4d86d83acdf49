"""OCID-Ref: the box of an object on a cluttered table or floor."""

import json
from pathlib import Path

from eval.data.readers import (
    find,
    image_folder,
    read_json,
    reading,
    text,
    whole,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.scorers import iou_at
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts
from prismatic.text.parsing import true_box

FOLDERS = ("ocid-ref", "ocidref", "OCID-Ref")
SHAPE = "an object of expressions by id, with scene_path, take_id, sentence and bbox"
WIDTH, HEIGHT = 640, 480  # of every picture


@or_prepared("ocid-ref", "ocid-ref", split="val")
def read(root: Path, split: str) -> list[Example]:
    """One example an expression; subsets are levels of clutter."""
    path = find(root, "ocid-ref", FOLDERS, f"{split}_expressions.json")
    images = image_folder(root, FOLDERS, "OCID-dataset/OCID-dataset", "OCID-dataset")
    examples = []
    expressions = read_json(path, "ocid-ref", SHAPE)
    with reading(path, "ocid-ref", SHAPE) as each:
        for id, row in each(expressions.items()):
            take = whole(row["take_id"])
            clutter = "Minimum" if take <= 9 else "Medium" if take <= 16 else "Maximum"
            corners = json.loads(row["bbox"])  # x1, y1, x2, y2, though its documentation says x, y, w, h
            box = true_box(corners, WIDTH, HEIGHT)
            size = {"width": WIDTH, "height": HEIGHT}
            examples.append(Example(id, f"{images}/{text(row['scene_path'])}", row["sentence"], box, clutter, size))
    return examples


register(
    Task(
        name="ocid-ref",
        version=1,
        read=read,
        prompt=prompts.box,
        answer=lambda example: Generate(),
        scorer=iou_at(0.25),
        num_examples={"val": {"": 18342}, "test": {"": 27513}},
        files=("ocid-ref/{val,test}_expressions.json", "ocid-ref/OCID-dataset/"),
    )
)
