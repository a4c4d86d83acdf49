"""MMBench, the questions on where things are; one counts if it is right in every order of its options."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval.data.embedded import only, pictured, rows_with_images
from eval.data.readers import choices_in_columns, find, index_of, reading, text, whole
from eval.scoring.choices import grouped, guessed, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("mmbench",)
SHAPE = "VLMEvalKit's TSV with index, question, hint, A to D, answer, category, and image (base64, or a row's index)"
FILES = {"dev": "MMBench_DEV_EN.tsv", "dev-v11": "MMBench_DEV_EN_V11.tsv"}
CATEGORIES = ("object_localization", "spatial_relationship", "physical_relation")
SIZES = {"dev": (4329, 1164)}  # rows and questions of a file, of all categories
TURNED = 1_000_000  # added to a question's index each time that its options are turned round


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the categories, `info["circular"]` is the index of the question."""
    path = find(root, "mmbench-spatial", FOLDERS, FILES[split])
    examples = []
    with reading(path, "mmbench-spatial", SHAPE) as each:
        for row in pictured(each(rows_with_images(path, root)), path):
            category = text(row["category"]).strip().lower().replace(" ", "_")  # some copies have capitals or spaces
            if category not in CATEGORIES:
                continue
            (choices, answer), hint = choices_in_columns(row), row.get("hint", "").strip()
            index = whole(index_of(row["index"]))
            info = {"choices": choices, "circular": str(index % TURNED)}
            info |= {"hint": hint} if hint.lower() not in ("", "nan") else {}
            examples.append(Example(str(index), only(row["image"]), row["question"], answer, category, info))
    return examples


def lacking(root: Path, split: str, examples: Sequence[Example]) -> list[str]:
    """What the file lacks: rows, of all categories, and orders of options."""
    found = []
    path = find(root, "mmbench-spatial", FOLDERS, FILES[split])
    if split in SIZES:
        with reading(path, "mmbench-spatial", SHAPE) as each:
            indices = [whole(index_of(row["index"])) for row in each(rows_with_images(path, root))]
        sizes = len(indices), len({index % TURNED for index in indices})
        if sizes != SIZES[split]:
            (rows, questions), (all_rows, all_questions) = sizes, SIZES[split]
            found.append(
                f"{path.name}: expected {all_rows:,} rows of {all_questions:,} questions, got {rows:,} of {questions:,}"
            )
    orders = Counter(example.info["circular"] for example in examples)
    torn = {e.info["circular"] for e in examples if orders[e.info["circular"]] != len(e.info["choices"])}
    if torn:
        found.append(f"{len(torn):,} questions lack orders of their options, such as {min(torn, key=int)}")
    return found


register(
    Task(
        name="mmbench-spatial",
        version=2,
        read=read,
        prompt=prompts.to_select,
        answer=prompts.choose_letter,
        scorer=grouped(multiple_choice(about="every order of the options right"), "circular", main=True),
        num_examples={"dev": {}, "dev-v11": {}},
        files=("mmbench/MMBench_DEV_EN.tsv", "mmbench/MMBench_DEV_EN_V11.tsv"),
        chance=lambda examples: guessed(examples, "circular"),
        variants=prompts.VARIANTS,
        lacking=lacking,
        licence="Apache-2.0",
        note="object localization, spatial relationship and physical relation; how many questions is not published",
    )
)
