"""CV-Bench: counting and relations in two dimensions (ADE20K, COCO), depth and distance in three (Omni3D)."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_of, filled, find, letter_of, name_of, reading, text
from eval.scoring.choices import guessed, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("cv-bench",)
SHAPE = (
    "parquet with idx, image, question, prompt, choices, answer such as (A), task, and source (ADE20K, COCO, Omni3D)"
)
FILES = {
    "test": ("test_2d.parquet", "test_3d.parquet"),
    "2D": ("test_2d.parquet",),
    "3D": ("test_3d.parquet",),
}
SUBSETS = {"ADE20K": "2D/ADE20K", "COCO": "2D/COCO", "Omni3D": "3D/Omni3D"}  # averaged in this way


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the sources."""
    examples = []
    for name in FILES[split]:
        path = find(root, "cv-bench", FOLDERS, name)
        with reading(path, "cv-bench", SHAPE) as each:
            for row in each(rows_with_images(path, root)):
                choices = choices_of(row["choices"])
                info = {"choices": choices, "prompt": filled(row["prompt"]), "task": text(row["task"])}
                id, subset, answer = name_of(row["idx"]), SUBSETS[row["source"]], letter_of(row["answer"], choices)
                examples.append(Example(id, only(row["image"]), row["question"], answer, subset, info))
    return examples


register(
    Task(
        name="cv-bench",
        version=2,
        read=read,
        prompt=lambda example: f"{example.info['prompt']}\n{prompts.DIRECTLY}",
        answer=prompts.choose_letter,
        scorer=multiple_choice("mean_accuracy", by=("task",), about="mean of 2D (mean of sources) and 3D"),
        num_examples={"test": {"": 2638}, "2D": {"": 1438}, "3D": {"": 1200}},
        files=("cv-bench/test_{2d,3d}.parquet",),
        chance=guessed,
        of_splits={"3D": {"chance": 1 / 2}},
        variants=prompts.VARIANTS,
        licence="Apache-2.0",
    )
)
