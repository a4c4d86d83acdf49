"""Evaluation folders for tests: real examples of real tasks, scored by their scorers."""

import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import jsonlines

from eval.task import Choose, Example, Record, Task
from eval.tasks import get_task

Answers = Callable[[Task, Example], Record]  # gives output and, of a choice, probabilities


def guesses(seed: int, skill: float) -> Answers:
    """A made-up model, right (of boxes: nearly so) in about so many cases; the same for the same seed."""

    def answer(task: Task, example: Example) -> Record:
        rng = random.Random(f"{seed} {task.name} {example.id}")
        right = rng.random() < skill
        kind = task.answer(example)
        if isinstance(kind, Choose):
            chosen = example.answer if right else rng.choice([o for o in kind.options if o != example.answer])
            left = 0.4 / (len(kind.options) - 1)
            probabilities = [0.6 if option == chosen else left for option in kind.options]
            return {"output": chosen, "options": list(kind.options), "probabilities": probabilities}
        x1, y1, x2, y2 = example.answer
        if right:
            return {"output": f"[{x1:.2f}, {y1:.2f}, {x2:.2f}, {y2:.2f}]"}
        x, y = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
        return {"output": rng.choice([f"[{x:.2f}, {y:.2f}, {x + 0.3:.2f}, {y + 0.4:.2f}]", "It is on the left."])}

    return answer


def write_evaluation(out: Path, root: Path, keys: Sequence[str], answers: Answers, **changes) -> Path:
    """Writes what an evaluation of these tasks leaves; `changes` are to the fields of every task's results."""
    tasks = {}
    for key in keys:
        task = get_task(key)
        records = []
        for example in task.read(root, task.split):
            record = asdict(example) | {"prompt": task.prompt(example)} | answers(task, example)
            records.append(record | task.scorer.judge(record))
        folder = out / key.replace(":", "-")
        folder.mkdir(parents=True)
        with jsonlines.open(folder / "samples.jsonl", "w", dumps=json.dumps) as writer:
            writer.write_all(records)
        tasks[key] = {
            "version": task.version,
            "split": task.split,
            "examples": len(records),
            "errors": sum("error" in record for record in records),
            "main": task.scorer.main,
            "metrics": task.scorer.summarise(records),
            "majority": task.majority,
            "chance": task.chance,
            "seconds": 2.0,
            "questions_per_second": len(records) / 2,
            "prompt": records[0]["prompt"],
            "fingerprint": "0123456789abcdef",
        } | changes
    about = {"model": f"models/{out.name}", "model_fingerprint": "fedcba9876543210", "commit": None, "versions": {}}
    results = about | {"data_root": str(root), "settings": {"precision": "fp32"}, "tasks": tasks}
    (out / "results.json").write_text(json.dumps(results))
    return out


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
