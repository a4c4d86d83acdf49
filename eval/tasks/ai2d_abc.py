"""AI2D test questions about letters, with the letters painted over the words that they stand for."""

from pathlib import Path

from eval.data.readers import find, read_json, reading
from eval.scoring.scorers import choice
from eval.task import Choose, Example, Task, register
from eval.tasks import ai2d, prompts

SHAPE = "an object with text: by id, each with rectangle [[x1, y1], [x2, y2]] and replacementText"


def read(root: Path, split: str) -> list[Example]:
    """Test questions about letters, with `info["letters"]`: pairs of letter and rectangle [[x1, y1], [x2, y2]]."""
    examples = [e for e in ai2d.read(root, "all") if e.subset == split and e.info.get("abc_label")]
    folder = find(root, "ai2d", ai2d.FOLDERS, *(f"{name}/annotations" for name in ai2d.UNPACKED))
    for example in examples:
        path = folder / f"{Path(example.image).name}.json"
        content = read_json(path, "ai2d", SHAPE)
        with reading(path, "ai2d", SHAPE):
            texts = [text for text in content["text"].values() if text.get("replacementText")]
            example.info["letters"] = [[text["replacementText"], text["rectangle"]] for text in texts]
    return examples


def paint_letters(image, example: Example):
    """The picture with each letter in black on white, over the word that it stands for."""
    from PIL import ImageDraw, ImageFont

    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for letter, ((x1, y1), (x2, y2)) in example.info["letters"]:
        x1, x2, y1, y2 = *sorted((x1, x2)), *sorted((y1, y2))
        draw.rectangle((x1, y1, x2, y2), fill="white")
        font = ImageFont.load_default(size=max(10, min(y2 - y1, 24)))
        draw.text(((x1 + x2) / 2, (y1 + y2) / 2), letter, fill="black", font=font, anchor="mm")
    return image


register(
    Task(
        name="ai2d-abc",
        version=1,
        read=read,
        prompt=prompts.lettered,
        answer=lambda example: Choose(ai2d.OPTIONS),
        scorer=choice(ai2d.OPTIONS),
        num_examples={"test": {"test": 1184}},
        files=("ai2d/val_qa/{questions,images,annotations}/", "ai2d/ai2d_test_ids.csv"),
        chance=1 / 4,
        image_of=paint_letters,
    )
)
