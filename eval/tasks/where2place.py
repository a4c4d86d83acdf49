"""Where2Place: points where a thing can be put, on photographs of crowded tables."""

from pathlib import Path

from eval.data.embedded import only, rows_with_images
from eval.data.masks import masked
from eval.data.readers import MissingData, find, find_all, image_folder, name_of, read_rows, reading, text
from eval.scoring.points import in_mask, share_marked
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts

FOLDERS = ("where2place",)
SHAPE = "questions with question_id, image and text, beside images/, and masks/ with 00.jpg for the first question"
TABLE = "parquet with question_id, question, image and mask"
HOW = (
    "Your answer should be formatted as a list of tuples, i.e. [(x1, y1), (x2, y2), ...], where each tuple contains "
    "the x and y coordinates of a point satisfying the conditions above. The coordinates should be between 0 and 1, "
    "indicating the normalized pixel locations of the points in the image."
)


def read(root: Path, split: str) -> list[Example]:
    """One example a question, of the authors' files, or of the parquet of FlagEval's copy."""
    try:
        path = find(root, "where2place", FOLDERS, "point_questions.jsonl")
    except MissingData as missing:
        try:
            return _read_table(root)
        except MissingData:
            raise missing from None
    images, masks = image_folder(root, FOLDERS, "images"), image_folder(root, FOLDERS, "masks")
    examples = []
    with reading(path, "where2place", SHAPE) as each:
        for number, row in enumerate(each(read_rows(path, "where2place", SHAPE))):
            image, mask = f"{images}/{text(row['image'])}", f"{masks}/{number:02d}.jpg"
            examples.append(masked(root, mask, name_of(row["question_id"]), image, text(row["text"])))
    return examples


def _read_table(root: Path) -> list[Example]:
    examples = []
    for path in find_all(root, "where2place", FOLDERS, "data/test-*.parquet", "test-*.parquet"):
        with reading(path, "where2place", TABLE) as each:
            for row in each(rows_with_images(path, root, ("image", "mask"))):
                asked = f"{text(row['question'])} {HOW}"
                examples.append(masked(root, only(row["mask"]), name_of(row["question_id"]), only(row["image"]), asked))
    return examples


register(
    Task(
        name="where2place",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=lambda example: Generate(256),
        scorer=in_mask(),
        num_examples={"test": {"": 100}},
        files=("where2place/point_questions.jsonl", "where2place/{images,masks}/"),
        chance=share_marked,
        licence="Apache-2.0",
        note="an answer without a point scores 0; its authors leave such answers out",
    )
)
