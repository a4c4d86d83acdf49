"""MMBench, the questions on where things are; one counts if it is right in every order of its options."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_in_columns, find, letter_of, reading, text, whole
from eval.scoring.choices import grouped, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("mmbench",)
SHAPE = "VLMEvalKit's TSV with index, question, hint, A to D, answer, category, and image (base64, or a row's index)"
FILES = {"dev": "MMBench_DEV_EN.tsv", "dev-v11": "MMBench_DEV_EN_V11.tsv"}
CATEGORIES = ("object_localization", "spatial_relationship", "physical_relation")
TURNED = 1_000_000  # added to a question's index each time that its options are turned round


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the categories, `info["circular"]` is the index of the question."""
    path = find(root, "mmbench-spatial", FOLDERS, FILES[split])
    examples = []
    with reading(path, "mmbench-spatial", SHAPE) as each:
        for row in each(rows_with_images(path, root)):
            if text(row["category"]) not in CATEGORIES:
                continue
            choices, index, hint = choices_in_columns(row), whole(row["index"]), row.get("hint", "").strip()
            info = {"choices": choices, "circular": str(index % TURNED)}
            info |= {"hint": hint} if hint.lower() not in ("", "nan") else {}
            answer = letter_of(row["answer"], choices)
            examples.append(Example(str(index), only(row["image"]), row["question"], answer, row["category"], info))
    return examples


register(
    Task(
        name="mmbench-spatial",
        version=1,
        read=read,
        prompt=prompts.to_select,
        answer=prompts.choose_letter,
        scorer=grouped(multiple_choice(about="every order of the options right"), "circular", main=True),
        num_examples={"dev": {}, "dev-v11": {}},
        files=("mmbench/MMBench_DEV_EN.tsv", "mmbench/MMBench_DEV_EN_V11.tsv"),
        variants=prompts.VARIANTS,
        licence="Apache-2.0",
        note="object localization, spatial relationship and physical relation; how many questions is not published",
    )
)
