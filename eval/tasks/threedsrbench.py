"""3DSRBench: height, location, orientation and relations of several things in space, with options turned round."""

import re
from pathlib import Path

from eval.data.embedded import only, pictured, rows_with_images
from eval.data.readers import choices_in_columns, find, reading, text
from eval.scoring.choices import grouped, multiple_choice
from eval.task import Example, Task, register
from eval.tasks import prompts

FOLDERS = ("3dsrbench",)
SHAPE = "VLMEvalKit's TSV with index, qid, image in base64, question, A to D, answer and category"
FILES = {"circular": "3dsrbench_v1_vlmevalkit_circular.tsv", "flip": "3dsrbench_v1_vlmevalkit.tsv"}
TYPES = ("height", "location", "orientation", "multi_object")
QID = re.compile(r"(.{8})(-flip)?(-\d+)?")  # question, mirrored image, options turned round


def read(root: Path, split: str) -> list[Example]:
    """One example a row; subsets are the four types.

    `info` has what counts together: `circular` is one image of a question, `flip` a row and its mirrored mate,
    `flip_circular` all rows of a question.
    """
    path = find(root, "3dsrbench", FOLDERS, FILES[split])
    examples = []
    with reading(path, "3dsrbench", SHAPE) as each:
        for row in pictured(each(rows_with_images(path, root)), path):
            (choices, answer), category = choices_in_columns(row), text(row["category"])
            qid = QID.fullmatch(row["qid"])
            if not qid:
                raise ValueError(f"qid {row['qid'][:40]!r}, expected 8 characters, then -flip, -1 or both")
            question, mirrored, turned = (part or "" for part in qid.groups())
            groups = {"circular": question + mirrored, "flip": question + turned, "flip_circular": question}
            subset = next((kind for kind in TYPES if category.startswith(kind)), None)
            if subset is None:
                raise ValueError(f"category {category[:40]!r}, expected one that begins with {', '.join(TYPES)}")
            info = {"choices": choices, "category": category} | groups
            examples.append(Example(row["qid"], only(row["image"]), row["question"], answer, subset, info))
    return examples


FLIP = {"chance": 0.467, "scorer": grouped(multiple_choice(by=("category",)), "flip", by=("category",))}
rows = multiple_choice(by=("category",), about="every order of the options right")
flips = grouped(grouped(rows, "flip"), "flip_circular")
register(
    Task(
        name="3dsrbench",
        version=2,
        read=read,
        prompt=prompts.to_select,
        answer=prompts.choose_letter,
        scorer=grouped(flips, "circular", main=True, by=("category",)),
        num_examples={"circular": {"": 11686}, "flip": {"": 5157}},
        files=("3dsrbench/3dsrbench_v1_vlmevalkit_circular.tsv", "3dsrbench/3dsrbench_v1_vlmevalkit.tsv"),
        chance=0.217,
        of_splits={"flip": FLIP},
        variants=prompts.VARIANTS,
        licence="CC BY 4.0",
        note="the authors' script gives circular_accuracy; whether their table has that or flip_circular is unknown",
    )
)
