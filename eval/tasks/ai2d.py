"""AI2D: questions about school-book diagrams, four choices.

All are asked of the plain pictures, as the reference does; questions about letters cannot be answered from these.
"""

from pathlib import Path

from eval.data.readers import (
    find,
    flag,
    image_folder,
    read_json,
    reading,
    texts,
    whole,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.scorers import choice
from eval.task import Choose, Example, Task, register
from eval.tasks import prompts

FOLDERS = ("ai2d",)
UNPACKED = ("ai2d", "val_qa")  # the folder's name in the archive, and the reference's name
OPTIONS = prompts.letters("ABCD")
SHAPE = "an object with questions: by text, each with questionId, answerTexts (four), correctAnswer (0 to 3), abcLabel"


@or_prepared("ai2d", "ai2d", split="all")
def read(root: Path, split: str) -> list[Example]:
    """One example a question, by number of picture; subsets are test (listed ids) and val (all others)."""
    ids_path = find(root, "ai2d", FOLDERS, "ai2d_test_ids.csv")
    with reading(ids_path, "ai2d", "one number a line"):
        test_ids = {int(line) for line in ids_path.read_text(encoding="utf-8-sig").split()}
    folder = find(root, "ai2d", FOLDERS, *(f"{name}/questions" for name in UNPACKED))
    images = image_folder(root, FOLDERS, *(f"{name}/images" for name in UNPACKED))
    names = ((path.name.removesuffix(".png.json"), path) for path in folder.glob("*.png.json"))
    paths = {int(name): path for name, path in names if name.isdecimal()}
    examples = []
    for number, path in sorted(paths.items()):
        content = read_json(path, "ai2d", SHAPE)
        with reading(path, "ai2d", SHAPE) as each:
            for text, row in each(content["questions"].items()):
                choices, letter = texts(row["answerTexts"]), OPTIONS[whole(row["correctAnswer"], below=len(OPTIONS))]
                info = {"choices": choices, "abc_label": flag(row["abcLabel"])}
                subset = "test" if number in test_ids else "val"
                examples.append(Example(row["questionId"], f"{images}/{number}.png", text, letter, subset, info))
    return examples


register(
    Task(
        name="ai2d",
        version=1,
        read=read,
        prompt=prompts.lettered,
        answer=lambda example: Choose(OPTIONS),
        scorer=choice(OPTIONS),
        num_examples={"all": {"val": 12413, "test": 3088}},
        files=("ai2d/val_qa/{questions,images}/", "ai2d/ai2d_test_ids.csv"),
        chance=1 / 4,
    )
)
