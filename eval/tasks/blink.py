"""BLINK: what people see at a glance, about one to four images; by default those of its tasks that are spatial."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_of, filled, find_all, letter_of, name_of, reading
from eval.scoring.choices import guessed, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("blink", "BLINK")
SHAPE = "parquet with idx, question, prompt, image_1 to image_4, choices, and answer such as (A)"
IMAGES = ("image_1", "image_2", "image_3", "image_4")
SIZES = {
    "Art_Style": 117,
    "Counting": 120,
    "Forensic_Detection": 132,
    "Functional_Correspondence": 130,
    "IQ_Test": 150,
    "Jigsaw": 150,
    "Multi-view_Reasoning": 133,
    "Object_Localization": 122,
    "Relative_Depth": 124,
    "Relative_Reflectance": 134,
    "Semantic_Correspondence": 139,
    "Spatial_Relation": 143,
    "Visual_Correspondence": 172,
    "Visual_Similarity": 135,
}  # of the validation split; the answers of the test split are not public
SPLITS = {
    "spatial": ("Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation"),
    "val": tuple(SIZES),
    "cambrian": (
        "Counting", "IQ_Test", "Object_Localization", "Relative_Depth", "Relative_Reflectance", "Spatial_Relation",
    ),
}  # fmt: skip


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the tasks."""
    examples = []
    for task in SPLITS[split]:
        for path in find_all(root, "blink", FOLDERS, f"{task}/val-*.parquet", f"{task}/val.parquet"):
            with reading(path, "blink", SHAPE) as each:
                for row in each(rows_with_images(path, root, IMAGES)):
                    choices = choices_of(row["choices"])
                    images = [image for column in IMAGES for image in row[column]]
                    image, more = only(images[:1]), tuple(images[1:])
                    info = {"choices": choices, "prompt": filled(row["prompt"])}
                    id, answer = name_of(row["idx"]), letter_of(row["answer"], choices)
                    examples.append(Example(id, image, row["question"], answer, task, info, more))
    return examples


register(
    Task(
        name="blink",
        version=2,
        read=read,
        prompt=lambda example: example.info["prompt"],
        answer=prompts.choose_letter,
        scorer=multiple_choice("mean_accuracy", about="likeliest option, mean of tasks"),
        num_examples={split: {task: SIZES[task] for task in tasks} for split, tasks in SPLITS.items()},
        files=("blink/*/val-*.parquet",),
        chance=1 / 2,
        of_splits={"val": {"chance": 0.381}, "cambrian": {"chance": guessed}},
        variants=prompts.VARIANTS,
        licence="Apache-2.0",
        note="split cambrian is the six tasks whose pooled accuracy (the metric accuracy) Cambrian reports",
    )
)
