"""Files with anything in them: what readers of benchmarks make of these."""

import copy
import json
from pathlib import Path

from eval.task import Choose

DEEP = json.loads("[" * 200 + "]" * 200)
ODD = [
    None, True, -1, 10**30, 1e308, float("nan"), float("inf"), "", "\ud800", "a\0b", "../../etc/passwd", "/etc/passwd",
    "..\\..\\x", "[1, 2, 3]", "x" * 5000, [], {}, [None], {"a": [1]}, DEEP, [1, 2, 3, float("nan")], 0, 16, "0", [[]],
]  # fmt: skip


def mutated(value, rng):
    """The value with something odd in one random place of it: another value, a key or a member gone, or twice."""
    value = copy.deepcopy(value)
    at = value
    while True:
        below = list(at.values()) if isinstance(at, dict) else at
        if not below or not any(isinstance(v, (dict, list)) and v for v in below) or rng.random() < 0.15:
            break
        at = rng.choice([v for v in below if isinstance(v, (dict, list)) and v])
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    if not keys or rng.random() < 0.03:
        return rng.choice(ODD)
    key = rng.choice(keys)
    if rng.random() < 0.2:
        del at[key]
    else:
        at[key] = copy.deepcopy(rng.choice(ODD))
    return value


def judged(task, examples):
    """All that an evaluation makes of examples without a model: whatever it raises is a defect of the reader."""
    records = []
    for example in examples:
        assert isinstance(example.image, str) and task.prompt(example).encode()
        kind = task.answer(example)
        record = {**vars(example), "output": "0.1", **({"options": kind.options} if isinstance(kind, Choose) else {})}
        records.append(record | task.scorer.judge(record))
        json.dumps(record)
    task.scorer.summarise(records)


def reads(task, root: Path, path: Path) -> bool:
    """Whether a task reads a file: broken, it is refused."""
    whole = path.read_bytes()
    path.write_bytes(b"{")
    try:
        task.read(root, task.split)
    except ValueError:
        return True
    finally:
        path.write_bytes(whole)
    return False


def refuses(task, root: Path, path: Path, content: bytes, named: str, also=lambda examples: None) -> bool:
    """Whether a task refuses a file with this content, in one line with the name; else its examples are judged.

    `also` takes the examples, while the file is as it was made; in the end it is as before.
    """
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        try:
            examples = task.read(root, task.split)
        except ValueError as error:
            assert named in str(error) and "\n" not in str(error), error
            return True
        judged(task, examples)
        also(examples)
        return False
    finally:
        path.write_bytes(whole)
