"""TallyQA: how many there are, 0 to 15, asked simply or with relations and attributes."""

from pathlib import Path

from eval.data.readers import (
    find,
    flag,
    image_folder,
    name_of,
    read_rows,
    reading,
    text,
    whole,
)
from eval.data.reference_metadata import or_prepared
from eval.scoring.scorers import choice
from eval.task import Choose, Example, Task, register
from eval.tasks import prompts

FOLDERS = ("tally-qa", "tallyqa")
SHAPE = "a list of questions with question_id, question, image, answer (0 to 15) and issimple"
CHOICES = [str(count) for count in range(16)]
LETTERS = prompts.letters(CHOICES)


@or_prepared("tallyqa", "tally-qa", split="test")
def read(root: Path, split: str) -> list[Example]:
    """One example a question; subsets are simple and complex."""
    path = find(root, "tallyqa", FOLDERS, f"{split}.json")
    images = image_folder(root, FOLDERS, "VG_100K").removesuffix("/VG_100K")
    examples = []
    rows = read_rows(path, "tallyqa", SHAPE)
    with reading(path, "tallyqa", SHAPE) as each:
        for row in each(rows):
            letter = LETTERS[whole(row["answer"], below=len(LETTERS))]
            subset = "simple" if flag(row["issimple"]) else "complex"
            id, image = name_of(row["question_id"]), f"{images}/{text(row['image'])}"
            examples.append(Example(id, image, row["question"], letter, subset, {"choices": CHOICES}))
    return examples


register(
    Task(
        name="tallyqa",
        version=1,
        read=read,
        prompt=prompts.lettered,
        answer=lambda example: Choose(LETTERS),
        scorer=choice(LETTERS, counts=True),
        num_examples={"test": {"simple": 22991, "complex": 15598}},
        files=("tally-qa/test.json", "tally-qa/VG_100K/", "tally-qa/VG_100K_2/"),
        chance=1 / 16,
    )
)
