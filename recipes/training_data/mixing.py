"""Mixtures of training data, row for row those of the reference.

The reference puts lists of rows behind each other and shuffles the result three times with Python's generator, seeded
with 7 when a script starts (Prismatic VLMs, scripts/additional-datasets). One of its scripts shuffles two mixtures, so
that the order of the second depends on how long the first is.
"""

import json
import random
from pathlib import Path
from typing import Any

from recipes.training_data.known import Table, find
from vision_backbones.files import replacing

SEED, SHUFFLES = 7, 3
AGAIN = "delete it and run the command again"


def write_mix(name: str, root: Path, table: Table) -> None:
    """Writes the annotations of a mixture, unless they are there or it is none.

    Raises:
        ValueError: What it is made of is malformed, or has another number of rows than expected.
    """
    data_set = find(name, table)
    path = root / data_set["annotations"]
    if "mix" not in data_set or path.exists():
        return
    found = [_rows(part, root, table) for part in data_set["mix"]]
    rows = [row for part in found for row in part]
    if data_set.get("only") == "with an image":
        rows = [row for row in rows if json.loads(row).get("image")]
    if data_set.get("shuffled"):
        before = [find(data_set["after"], table)["rows"]] if "after" in data_set else []
        rows = [rows[place] for place in reference_order([*before, len(rows)])]
    parts = " and ".join(data_set["mix"])
    check_count(len(rows), data_set["rows"], f"{name}, of {parts},", "fetch their files anew")
    with replacing(path) as tmp_path, tmp_path.open("w") as file:
        file.write("[")
        file.writelines(f"{', ' if number else ''}{row}" for number, row in enumerate(rows))
        file.write("]")
    print(f"{data_set['annotations']}: {len(rows):,} rows of {parts}")


def reference_order(lengths: list[int]) -> list[int]:
    """Places of the rows of the last of several lists of such lengths, shuffled one after another."""
    rng = random.Random(SEED)
    for length in lengths:
        order = list(range(length))
        for _ in range(SHUFFLES):
            rng.shuffle(order)
    return order


def check_count(found: int, expected: int | str | None, what: object, remedy: str) -> None:
    """Raises ValueError where rows are not as many as expected: a number, or thousands such as "888k"; None is any."""
    if expected not in (None, found, f"{round(found / 1000)}k"):
        wanted = expected if isinstance(expected, str) else f"{expected:,}"
        raise ValueError(f"{what} has {found:,} rows, expected {wanted}: {remedy}")


def _rows(name: str, root: Path, table: Table) -> list[str]:
    """Rows of a data set or part as JSON, which takes a fifth of the memory of what it stands for."""
    if name in table["data_sets"]:
        write_mix(name, root, table)
    entry = table["data_sets"].get(name) or table["parts"][name]
    if "questions" in entry:
        rows = [row for source in entry["questions"] for row in _as_rows(root / source["json"], source["image"])]
        place = root / entry["questions"][0]["json"]
    else:
        place = root / entry["annotations"]
        rows = _read(place)
    rows = [json.dumps(row) for row in rows]
    check_count(len(rows), entry["rows"], place, AGAIN)
    return rows


def _read(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {AGAIN}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is no list of rows: {AGAIN}")
    return rows


def _as_rows(path: Path, image: str) -> list[dict[str, Any]]:
    """LLaVA rows of LRV-Instruct's questions; `image` says where an image of some id lies."""
    rows = []
    for number, asked in enumerate(_read(path)):
        try:
            name, question, answer = asked["image_id"], asked["question"].strip(), asked["answer"].strip()
        except (KeyError, AttributeError) as error:
            raise ValueError(f"{path}: row {number} has no text {error}; expected image_id, question, answer") from None
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        identity = Path(name).stem if isinstance(name, str) else name
        rows.append({"id": identity, "image": image.format(name), "conversations": turns})
    return rows
