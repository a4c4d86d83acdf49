"""V*: attributes and relative positions of small things in large photographs."""

from pathlib import Path

from eval.data.readers import choices_of, filled, find, read_json, reading
from eval.scoring.choices import multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("vstar", "vstar_bench")
SHAPE = "an object with question and options, the right one first, beside an image of the same name"
SIZES = {"direct_attributes": 115, "relative_position": 76}


def read(root: Path, split: str) -> list[Example]:
    """One example a file, options in a fixed random order; subsets are the folders."""
    examples = []
    for subset in SIZES:
        folder = find(root, "vstar", FOLDERS, subset)
        images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix != ".json"}
        for path in sorted(folder.glob("*.json")):
            row, id = read_json(path, "vstar", SHAPE), f"{subset}/{path.stem}"
            with reading(path, "vstar", SHAPE):
                choices, answer = prompts.shuffled(choices_of(row["options"]), id)
                image = images.get(path.stem, path.with_suffix(".jpg")).relative_to(root).as_posix()
                examples.append(Example(id, image, filled(row["question"]), answer, subset, {"choices": choices}))
    return examples


register(
    Task(
        name="vstar",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=prompts.choose_words,
        scorer=multiple_choice(),
        num_examples={"test": SIZES},
        files=("vstar/{direct_attributes,relative_position}/",),
        chance=(115 / 4 + 76 / 2) / 191,
        variants=prompts.VARIANTS_OF_BARE,
        licence="of the data not stated",
        note="its authors compare the mean log probability of the options' tokens, this the sum",
    )
)
