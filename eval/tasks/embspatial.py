"""EmbSpatial-Bench: six relations between things, as seen from inside a room."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.readers import choices_of, find, name_of, reading, text, whole
from eval.scoring.choices import multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("embspatial",)
SHAPE = "a list of questions with question_id, image in base64, question, answer_options, answer (0 to 3), relation"


def read(root: Path, split: str) -> list[Example]:
    """One example a question; subsets are what the rooms were taken from."""
    path = find(root, "embspatial", FOLDERS, "embspatial_bench.json")
    examples = []
    with reading(path, "embspatial", SHAPE) as each:
        for row in each(rows_with_images(path, root)):
            choices = choices_of(row["answer_options"])
            answer = prompts.letters(choices)[whole(row["answer"], below=len(choices))]
            info, id = {"choices": choices, "relation": text(row["relation"])}, name_of(row["question_id"])
            examples.append(Example(id, only(row["image"]), row["question"], answer, row["data_source"], info))
    return examples


register(
    Task(
        name="embspatial",
        version=2,
        read=read,
        prompt=prompts.lettered,
        answer=prompts.choose_letter,
        scorer=multiple_choice(by=("relation",)),
        num_examples={"test": {"": 3640}},
        files=("embspatial/embspatial_bench.json",),
        chance=1 / 4,
        variants=prompts.VARIANTS,
        licence="CC BY 4.0",
        note="its authors published no prompt: LLaVA's is used",
    )
)
