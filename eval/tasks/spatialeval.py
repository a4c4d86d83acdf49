"""SpatialEval: maps, mazes, grids and photographs, as an image (vqa), or as an image and in words (vtqa)."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_of, find_all, letter_of, listed_choices, name_of, reading, text
from eval.scoring.choices import multiple_choice
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("spatialeval", "SpatialEval")
SHAPE = "parquet with id such as mazenav.vqa.1.0, image, text with lines such as 'A. Yes', and oracle_option (a letter)"
REASON = (
    "First, provide a concise answer in one sentence. Then, elaborate on the reasoning behind your answer in a "
    "detailed, step-by-step explanation."
)


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the four tasks."""
    examples = []
    for path in find_all(root, "spatialeval", FOLDERS, f"**/{split}/*.parquet", f"**/{split}-*.parquet"):
        with reading(path, "spatialeval", SHAPE) as each:
            for row in each(rows_with_images(path, root)):
                choices = choices_of(listed_choices(text(row["text"])))
                id, answer = name_of(row["id"]), letter_of(row["oracle_option"], choices)
                subset, *_, kind = id.split(".")
                info = {"choices": [choice.removesuffix(".") or choice for choice in choices], "kind": kind}
                examples.append(Example(id, only(row["image"]), row["text"], answer, subset, info))
    return examples


register(
    Task(
        name="spatialeval",
        version=2,
        read=read,
        prompt=lambda example: f"{example.question} {REASON}",
        answer=lambda example: Generate(512),
        scorer=multiple_choice(by=("kind",), about="option that the text names"),
        num_examples={"vqa": {"": 4635}, "vtqa": {"": 4635}},
        files=("spatialeval/{vqa,vtqa}/*.parquet",),
        chance=1 / 4,
        variants={
            "llava": {
                "prompt": lambda example: f"{example.question}\n{prompts.DIRECTLY}",
                "answer": prompts.choose_letter,
            },
        },
        licence="not stated",
        note="its authors pull answers out of texts by rules of each task and count parts of words; here the first "
        "sentence that names one option counts, by letter or in words",
    )
)
