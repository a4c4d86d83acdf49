"""The reference's prepared `datasets/<family>/metadata*.json`, for users who have those."""

import math
import random
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from eval.data.readers import (
    MissingData,
    flag,
    name_of,
    read_json,
    reading,
    text,
    texts,
    whole,
)
from eval.data.selection import SEED
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
    if not math.isfinite(x1 + y1 + x2 + y2) or x1 > x2 or y1 > y2:
        raise ValueError(f"bbox {[x1, y1, x2, y2]}, expected four finite numbers x1, y1, x2, y2")
    return box


def _refcoco(row: dict) -> Example:
    id = f"{row['refer_dataset']}-{name_of(row['ref_id'])}-{name_of(row['sent_id'])}"
    return Example(id, row["img_path"], row["ref_expression"], _box(row), row["refer_dataset"])


def _ocid_ref(row: dict) -> Example:
    clutter, size = row["clutter_split"].split()[0], {"width": 640, "height": 480}
    return Example(name_of(row["example_id"]), row["img_path"], row["ref_expression"], _box(row), clutter, size)


def _tallyqa(row: dict) -> Example:
    choices = {"choices": [str(i) for i in range(16)]}
    letter = "ABCDEFGHIJKLMNOP"[whole(row["answer"], below=16)]
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], letter, row["split"], choices)


def _vsr(row: dict) -> Example:
    info = {"relation": text(row["relation"])}
    answer = str(flag(row["true_false"]))
    return Example(name_of(row["example_id"]), row["img_path"], row["caption"], answer, "", info)


def _ai2d(row: dict) -> Example:
    info = {"choices": texts(row["answer_choices"])}
    letter = "ABCD"[whole(row["answer_label"], below=4)]
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], letter, row["split"], info)


def _vqav2(row: dict) -> Example:
    info = {kind: text(row[kind]) for kind in ("answer_type", "question_type")}
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], texts(row["all_answers"]), "", info)


def _gqa(row: dict) -> Example:
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], text(row["answer"]))


def _vizwiz(row: dict) -> Example:
    answers = row["answers"][0] if isinstance(row["answers"][0], list) else row["answers"]
    info = {"answerable": int(flag(row["answerable"]))}
    said = texts([answer["answer"] for answer in answers])
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], said, "", info)


def _textvqa(row: dict) -> Example:
    return Example(name_of(row["question_id"]), row["img_path"], row["question"], texts(row["answers"]))


def _pope(row: dict) -> Example:
    id = f"{row['split']}-{name_of(row['split_question_id'])}"
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
