"""Ref-L4: the box of what a long expression refers to, of 365 classes and any size."""

import math
from pathlib import Path

from eval.data.embedded import rows_with_images
from eval.data.readers import find, image_folder, name_of, reading, text, whole
from eval.scoring.boxes import iou_above
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts
from prismatic.text.parsing import box_fractions

FOLDERS = ("ref-l4", "Ref-L4")
SHAPE = "parquet with id, caption, bbox (x, y, width, height), file_name, width, height, ori_category_id (o365_12)"
SPLITS = {"all": ("val", "test"), "val": ("val",), "test": ("test",)}
# Numbers of COCO's classes, and of those that Objects365 calls the same; sports ball is a class of its own.
OBJECTS365 = {
    1: 1, 2: 47, 3: 6, 4: 59, 5: 115, 6: 56, 7: 117, 8: 66, 9: 22, 10: 41, 11: 177, 13: 128, 14: 250, 15: 25, 16: 57,
    17: 140, 18: 93, 19: 79, 20: 100, 21: 97, 22: 145, 23: 296, 24: 179, 25: 181, 27: 39, 28: 40, 31: 14, 32: 44,
    33: 121, 34: 220, 35: 120, 36: 174, 38: 155, 39: 138, 40: 114, 41: 146, 42: 147, 43: 205, 44: 9, 46: 36, 47: 11,
    48: 89, 49: 85, 50: 94, 51: 27, 52: 113, 53: 83, 54: 266, 55: 105, 56: 142, 57: 153, 58: 235, 59: 144, 60: 151,
    61: 98, 62: 3, 63: 51, 64: 26, 65: 76, 67: 99, 70: 154, 72: 38, 73: 74, 74: 116, 75: 133, 76: 107, 77: 62, 78: 164,
    79: 135, 80: 278, 81: 82, 82: 134, 84: 19, 85: 95, 86: 31, 87: 170, 88: 71, 89: 329, 90: 227,
}  # fmt: skip


def read(root: Path, split: str) -> list[Example]:
    """One example an expression; subsets are sizes of boxes."""
    images = image_folder(root, FOLDERS, "images")
    examples = []
    for part in SPLITS[split]:
        path = find(root, "ref-l4", FOLDERS, f"ref-l4-{part}.parquet")
        with reading(path, "ref-l4", SHAPE) as each:
            for row in each(rows_with_images(path, root, ())):
                width, height = whole(row["width"]), whole(row["height"])
                box, size = _box(*row["bbox"], width, height)
                info = {"width": width, "height": height, "class": class_of(text(row["ori_category_id"]))}
                image = f"{images}/{text(row['file_name'])}"
                examples.append(Example(name_of(row["id"]), image, row["caption"], box, size, info))
    return examples


def _box(x: float, y: float, w: float, h: float, width: int, height: int) -> tuple[list[float], str]:
    """A box in fractions of the image, not rounded, and its size in words."""
    box_fractions((x, y, x + w, y + h), width, height)  # refuses what is no box
    if w <= 0 or h <= 0 or x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(f"bbox {[x, y, w, h]} (x, y, width, height) in an image of {width} x {height} pixels")
    side = math.sqrt(w * h)
    size = "small" if side < 128 else "medium" if side <= 256 else "large"
    return [x / width, y / height, (x + w) / width, (y + h) / height], size


def class_of(category: str) -> str:
    """A category of the annotations, those of COCO under the name of that of Objects365.

    Raises:
        ValueError: It is of neither.
    """
    kind, _, number = category.partition("_")
    if kind not in ("o365", "refcoco") or not number.isdecimal():
        raise ValueError(f"ori_category_id {category[:80]!r}, expected one such as o365_12 or refcoco_3")
    known = OBJECTS365.get(int(number)) if kind == "refcoco" else None
    return f"o365_{known}" if known else category


register(
    Task(
        name="ref-l4",
        version=1,
        read=read,
        prompt=prompts.box,
        answer=lambda example: Generate(),
        scorer=iou_above(classes="class"),
        num_examples={"all": {"": 45341}, "val": {"": 7231}, "test": {"": 38110}},
        files=("ref-l4/ref-l4-{val,test}.parquet", "ref-l4/images/"),
        licence="CC BY-NC 4.0, images as their sources",
        note="classes of COCO count as those of Objects365 of the same name, for which its authors have a table that "
        "pairs some with others; they name no prompt: LLaVA's is used",
    )
)
