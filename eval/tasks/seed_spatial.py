"""SEED-Bench, the questions on where things are: instance location and spatial relation."""

from pathlib import Path

from eval.data.readers import choices_of, filled, find, image_folder, letter_of, name_of, read_json, reading, whole
from eval.scoring.choices import multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("seed-bench", "SEED-Bench")
SHAPE = "an object with questions: question_id, question_type_id, data_id, question, choice_a to choice_d, answer"
KINDS = {4: "Instance_Location", 6: "Spatial_Relation"}  # by number: the spelling of the names varies


def read(root: Path, split: str) -> list[Example]:
    """One example a question; subsets are the two kinds."""
    path = find(root, "seed-bench-spatial", FOLDERS, "SEED-Bench.json")
    images = image_folder(root, FOLDERS, "SEED-Bench-image")
    content, examples = read_json(path, "seed-bench-spatial", SHAPE), []
    with reading(path, "seed-bench-spatial", SHAPE) as each:
        for row in each(content["questions"]):
            subset = KINDS.get(whole(row["question_type_id"]))
            if subset is None:
                continue
            choices = choices_of([row[f"choice_{letter}"] for letter in "abcd"])
            id, image, question = name_of(row["question_id"]), filled(row["data_id"]), filled(row["question"])
            answer, info = letter_of(row["answer"], choices), {"choices": choices}
            examples.append(Example(id, f"{images}/{image}", question, answer, subset, info))
    return examples


register(
    Task(
        name="seed-bench-spatial",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=prompts.choose_words,
        scorer=multiple_choice(),
        num_examples={"test": {"Instance_Location": 978, "Spatial_Relation": 657}},
        files=("seed-bench/SEED-Bench.json", "seed-bench/SEED-Bench-image/"),
        chance=1 / 4,
        variants=prompts.VARIANTS_OF_BARE,
        licence="CC BY-NC 4.0",
        note="its authors compare the loss of the options as answers; here sums of log probabilities are compared; "
        "most others ask for a letter (llava)",
    )
)
