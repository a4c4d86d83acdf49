"""Small files in the formats of benchmarks of points, boxes and counts, with drawn pictures and invented questions."""

import io
import json

import numpy as np
from PIL import Image
from spatial_files import image, write_image, write_parquet, write_text

WIDTH, HEIGHT = 40, 20


def region(kind="PNG", grey=255):
    """A mask of 40 x 20 pixels whose columns 10 to 19 and rows 5 to 14 are marked: 100 of 800."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[5:15, 10:20] = grey
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **({"quality": 100} if kind == "JPEG" else {}))
    return file.getvalue()


def ref_l4(root):
    """Boxes of three sizes and three classes, one of them under two names."""

    def row(id, bbox, category, split):
        return {
            "id": id, "caption": f"the thing number {id}", "bbox": bbox, "bbox_area": bbox[2] * bbox[3],
            "ori_category_id": category, "image_id": f"o365_{id}", "height": 600, "width": 1000,
            "file_name": f"thing_{id}.jpg", "is_rewrite": False, "split": split,
        }  # fmt: skip

    rows = [
        row(0, [100.0, 60.0, 100.0, 120.0], "o365_6", "val"),  # side 109.5: small
        row(1, [0.0, 0.0, 256.0, 256.0], "refcoco_3", "val"),  # 256: medium still; a car, as 6 of Objects365
        row(2, [500.0, 300.0, 128.0, 128.0], "o365_1", "test"),  # 128: medium
        row(3, [200.0, 100.0, 500.0, 400.0], "refcoco_37", "test"),  # large; a class that Objects365 does not have
    ]
    write_parquet(root / "ref-l4/ref-l4-val.parquet", rows[:2], images=())
    write_parquet(root / "ref-l4/ref-l4-test.parquet", rows[2:], images=())
    for number in range(4):
        write_image(root / f"ref-l4/images/thing_{number}.jpg", number)


def where2place(root):
    """Three questions of the authors' files; masks go by the row, not by the id."""
    rows = [
        {"question_id": 7 - number, "image": f"{number}.png", "text": f"Find free space, number {number}. Answer so."}
        for number in range(3)
    ]
    write_text(root / "where2place/point_questions.jsonl", "\n".join(map(json.dumps, rows)) + "\n")
    for number in range(3):
        write_image(root / f"where2place/images/{number}.png", number)
        (root / "where2place/masks").mkdir(exist_ok=True)
        (root / f"where2place/masks/{number:02d}.jpg").write_bytes(region("JPEG", (255, 204, 255)[number]))


def where2place_table(root):
    rows = [
        {"question_id": number, "question": "Find free space.", "question_type": "point", "image": image(number),
         "mask": {"bytes": region(), "path": "m.png"}} for number in range(2)
    ]  # fmt: skip
    write_parquet(root / "where2place/data/test-00000-of-00001.parquet", rows, ("image", "mask"))


def refspatial(root):
    for subset, count in (("location", 2), ("placement", 1), ("unseen", 1)):
        rows = [
            {"id": number, "image": image(number), "mask": {"bytes": region(grey=1), "path": "m.png"}, "object": "cup",
             "prompt": "Point to the cup.", "suffix": "Answer so.", "step": number + 1} for number in range(count)
        ]  # fmt: skip
        write_parquet(root / f"refspatial/data/{subset}-00000-of-00001.parquet", rows, ("image", "mask"))


def countbenchqa(root):
    rows = [
        {"image": image(number), "text": f"{said} apples on a table", "question": "How many apples are there?",
         "number": number} for number, said in ((2, "two"), (10, "ten"), (3, "three"), (4, "four"))
    ]  # fmt: skip
    write_parquet(root / "countbenchqa/data/test-00000-of-00001.parquet", rows)


def pixmo_count(root):
    rows = [
        {"question": "<image>How many people are there?", "answer": str(number), "image": image(number)}
        for number in (2, 5)
    ]
    write_parquet(root / "pixmo-count/data/test-00000-of-00001.parquet", rows)


WRITERS = {
    "ref-l4": ref_l4, "where2place": where2place, "refspatial": refspatial, "countbenchqa": countbenchqa,
    "pixmo-count": pixmo_count,
}  # fmt: skip
