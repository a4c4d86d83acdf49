"""The reference's prepared `datasets/<family>/metadata*.json`, for users who have those."""

import math
import random
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from eval.data import SEED
from eval.files import MissingData, read_json, reading, texts
from eval.task import Example


def or_prepared(task: str, family: str, split: str) -> Callable:
    """Decorates a reader of raw downloads: where these are missing, it reads the prepared metadata of that split."""

    def decorate(read: Callable[[Path, str], list[Example]]) -> Callable[[Path, str], list[Example]]:
        @wraps(read)
        def read_either(root: Path, asked: str) -> list[Example]:
            try:
                return read(Path(root), asked)
            except MissingData:
                for name in ("metadata-full.json", "metadata.json"):
                    path = Path(root) / "datasets" / family / name
                    if asked == split and path.is_file():
                        return read_prepared(path, family, task)
                raise

        return read_either

    return decorate


def read_prepared(path: Path, family: str, task: str = "") -> list[Example]:
    """Examples of a prepared metadata file.

    A full one is brought back into the order of the raw data, which the reference shuffled, so that slim variants and
    limits mean the same; a slim one stays as it is.

    Raises:
        ValueError: The file is not as expected.
    """
    shape = "an object of examples by id, as the reference's scripts/datasets/prepare.py writes it"
    metadata = read_json(path, task or family, shape)
    with reading(path, task or family, shape) as each:
        examples = [_EXAMPLES[family](row) for row in each(metadata.values())]
    if "slim" in path.name:
        return examples
    order = list(range(len(examples)))
    random.Random(SEED).shuffle(order)
    return [example for _, example in sorted(zip(order, examples, strict=True), key=lambda pair: pair[0])]


def _box(row: dict) -> list[float]:
    x1, y1, x2, y2 = box = row["bbox"]
    if not math.isfinite(x1 + y1 + x2 + y2):
        raise ValueError(f"bbox {box}, expected four finite numbers")
    return box


def _refcoco(row: dict) -> Example:
    id = f"{row['refer_dataset']}-{row['ref_id']}-{row['sent_id']}"
    return Example(id, row["img_path"], row["ref_expression"], _box(row), row["refer_dataset"])


def _ocid_ref(row: dict) -> Example:
    clutter, size = row["clutter_split"].split()[0], {"width": 640, "height": 480}
    return Example(str(row["example_id"]), row["img_path"], row["ref_expression"], _box(row), clutter, size)


def _tallyqa(row: dict) -> Example:
    choices = {"choices": [str(i) for i in range(16)]}
    letter = "ABCDEFGHIJKLMNOP"[row["answer"]]
    return Example(str(row["question_id"]), row["img_path"], row["question"], letter, row["split"], choices)


def _vsr(row: dict) -> Example:
    info = {"relation": row["relation"]}
    answer = {"True": "True", "False": "False"}[str(row["true_false"])]
    return Example(str(row["example_id"]), row["img_path"], row["caption"], answer, "", info)


def _ai2d(row: dict) -> Example:
    info = {"choices": texts(row["answer_choices"])}
    letter = "ABCD"[row["answer_label"]]
    return Example(str(row["question_id"]), row["img_path"], row["question"], letter, row["split"], info)


def _vqav2(row: dict) -> Example:
    info = {"answer_type": row["answer_type"], "question_type": row["question_type"]}
    return Example(str(row["question_id"]), row["img_path"], row["question"], texts(row["all_answers"]), "", info)


def _gqa(row: dict) -> Example:
    return Example(str(row["question_id"]), row["img_path"], row["question"], row["answer"])


def _vizwiz(row: dict) -> Example:
    answers = row["answers"][0] if isinstance(row["answers"][0], list) else row["answers"]
    info = {"answerable": row["answerable"]}
    said = texts([answer["answer"] for answer in answers])
    return Example(str(row["question_id"]), row["img_path"], row["question"], said, "", info)


def _textvqa(row: dict) -> Example:
    return Example(str(row["question_id"]), row["img_path"], row["question"], texts(row["answers"]))


def _pope(row: dict) -> Example:
    id = f"{row['split']}-{row['split_question_id']}"
    answer = {"yes": "Yes", "no": "No"}[row["answer"].lower()]
    return Example(id, row["img_path"], row["question"], answer, row["split"])


_EXAMPLES = {
    "refcoco": _refcoco,
    "ocid-ref": _ocid_ref,
    "tally-qa": _tallyqa,
    "vsr": _vsr,
    "ai2d": _ai2d,
    "vqa-v2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "text-vqa": _textvqa,
    "pope": _pope,
}
