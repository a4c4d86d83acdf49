"""What'sUp, sets A and B: which of four captions that differ in a preposition fits a photograph of two things."""

from pathlib import Path, PurePosixPath

from eval.data.readers import choices_of, find, image_folder, read_rows, reading, text
from eval.scoring.choices import grouped, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("whatsup",)
SHAPE = "a list of objects with image_path, such as data/controlled_images/mug_left_of_cap.jpeg, and caption_options"
SETS = {
    "A": ("controlled_images_dataset.json", "controlled_images"),
    "B": ("controlled_clevr_dataset.json", "controlled_clevr"),
}
PAIRS = {"left": "beside", "right": "beside", "on": "above", "under": "above", "in-front": "deep", "behind": "deep"}
ASKED = "Which caption describes the image?"


def read(root: Path, split: str) -> list[Example]:
    """One example an image, captions in a fixed random order; what counts together is in `info`: `pair` and `set`."""
    examples = []
    for subset, (name, folder) in SETS.items():
        path, images = find(root, "whatsup", FOLDERS, name), image_folder(root, FOLDERS, folder)
        rows = read_rows(path, "whatsup", SHAPE)
        with reading(path, "whatsup", SHAPE) as each:
            for row in each(rows):
                image = PurePosixPath(text(row["image_path"]))
                one, relation, *_, other = image.stem.split("_")
                id = f"{subset}-{image.stem}"
                choices, answer = prompts.shuffled(choices_of(row["caption_options"]), id)
                of_two = f"{subset}-{one}-{other}"
                info = {"choices": choices, "relation": relation, "set": of_two, "pair": f"{of_two}-{PAIRS[relation]}"}
                examples.append(Example(id, f"{images}/{image.name}", ASKED, answer, subset, info))
    return examples


captions = multiple_choice("mean_accuracy", by=("relation",), about="likeliest caption, mean of A and B")
register(
    Task(
        name="whatsup",
        version=2,
        read=read,
        prompt=lambda example: "Describe the image in one sentence.",
        answer=prompts.choose_words,
        scorer=grouped(grouped(captions, "pair"), "set"),
        num_examples={"test": {"A": 412, "B": 408}},
        files=("whatsup/controlled_{images,clevr}_dataset.json", "whatsup/controlled_{images,clevr}/"),
        chance=1 / 4,
        variants=prompts.VARIANTS_OF_BARE,
        licence="code MIT, of the photographs not stated",
        note="its authors match images and texts without a prompt; here captions are compared as answers to one",
    )
)
