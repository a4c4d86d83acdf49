"""AI2D: questions about school-book diagrams, four choices.

`ai2d` asks all of them of the plain pictures, as the reference does. Questions about letters cannot be answered from
these; `ai2d-abc` asks those of the test set, with the letters painted over the words that they stand for.
"""

from pathlib import Path

from eval.files import find, image_folder, read_json, reading
from eval.prepared import or_prepared
from eval.scorers import choice
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
        test_ids = {int(line) for line in ids_path.read_text().split()}
    folder = find(root, "ai2d", FOLDERS, *(f"{name}/questions" for name in UNPACKED))
    images = image_folder(root, FOLDERS, *(f"{name}/images" for name in UNPACKED))
    paths = {int(p.name.removesuffix(".png.json")): p for p in folder.glob("*.png.json") if p.name[0].isdigit()}
    examples = []
    for number, path in sorted(paths.items()):
        content = read_json(path, "ai2d", SHAPE)
        with reading(path, "ai2d", SHAPE):
            for text, row in content["questions"].items():
                choices, letter = row["answerTexts"], OPTIONS[row["correctAnswer"]]
                info = {"choices": choices, "abc_label": row["abcLabel"]}
                subset = "test" if number in test_ids else "val"
                examples.append(Example(row["questionId"], f"{images}/{number}.png", text, letter, subset, info))
    return examples


def read_abc(root: Path, split: str) -> list[Example]:
    """Test questions about letters, with `info["letters"]`: pairs of letter and rectangle [[x1, y1], [x2, y2]]."""
    examples = [e for e in read(root, "all") if e.subset == split and e.info.get("abc_label")]
    folder = find(root, "ai2d", FOLDERS, *(f"{name}/annotations" for name in UNPACKED))
    for example in examples:
        path = folder / f"{Path(example.image).name}.json"
        shape = "an object with text: by id, each with rectangle [[x1, y1], [x2, y2]] and replacementText"
        content = read_json(path, "ai2d", shape)
        with reading(path, "ai2d", shape):
            texts = content["text"].values()
            example.info["letters"] = [[t["replacementText"], t["rectangle"]] for t in texts if t["replacementText"]]
    return examples


def paint_letters(image, example: Example):
    """The picture with each letter in black on white, over the word that it stands for."""
    from PIL import ImageDraw, ImageFont

    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for letter, ((x1, y1), (x2, y2)) in example.info["letters"]:
        x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
        draw.rectangle((x1, y1, x2, y2), fill="white", outline="black")
        font = ImageFont.load_default(size=max(10, min(y2 - y1, 24)))
        draw.text(((x1 + x2) / 2, (y1 + y2) / 2), letter, fill="black", font=font, anchor="mm")
    return image


_shared = {
    "version": 1,
    "prompt": prompts.lettered,
    "answer": lambda example: Choose(OPTIONS),
    "scorer": choice(OPTIONS),
    "chance": 1 / 4,
}
_files = ("ai2d/val_qa/{questions,images}/", "ai2d/ai2d_test_ids.csv")
register(
    Task(name="ai2d", read=read, num_examples={"all": {"val": 12413, "test": 3088}}, files=_files, **_shared),
)
register(
    Task(
        name="ai2d-abc",
        read=read_abc,
        num_examples={"test": {"test": 1184}},
        files=(*_files, "ai2d/val_qa/annotations/"),
        image_of=paint_letters,
        **_shared,
    )
)
