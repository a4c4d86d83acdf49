"""Evaluation folders: what `recipes/evaluate.py` wrote, read again."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonlines

from eval.records import check_record
from eval.task import Record
from vision_backbones.files import describe


@dataclass(frozen=True)
class Run:
    """An evaluated model.

    Attributes:
        name: Of the folder, with as much of its path as tells it from the other runs.
        folder: That holds `results.json`.
        results: Its content.
    """

    name: str
    folder: Path
    results: dict[str, Any]

    @property
    def tasks(self) -> dict[str, dict]:
        """Results by task, or task:split."""
        return self.results["tasks"]

    def records(self, key: str) -> list[Record]:
        """Judged records of a task.

        Raises:
            ValueError: They are not there, damaged, or not as many as `results.json` says.
        """
        path = samples_path(self.folder, key)
        try:
            with jsonlines.open(path, loads=json.loads) as reader:  # orjson, its default, reads no lone surrogates
                records = list(reader)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: evaluate again, to the same folder") from None
        except (jsonlines.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it and evaluate again") from None
        for number, record in enumerate(records, 1):
            check_record(record, f"{path}: line {number}")
        known = self.tasks[key].get("samples")
        if known and describe(path)["sha256"] != known:
            raise ValueError(f"{path} was changed after it was written (SHA-256 differs): evaluate again")
        expected = self.tasks[key]["examples"]
        if len(records) != expected:
            raise ValueError(f"{path} has {len(records):,} records, expected {expected:,}: evaluate again")
        return records


def samples_path(folder: Path, key: str) -> Path:
    """Where the records of a task, or task:split, lie in an evaluation folder."""
    return folder / key.replace(":", "-") / "samples.jsonl"


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders.

    Raises:
        ValueError: A folder is given twice, or is no evaluation folder.
    """
    folders = [Path(folder).resolve() for folder in folders]
    twice = [folder for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: give each run once")
    results = [_read(folder) for folder in folders]
    return [Run(n, f, r) for n, f, r in zip(_names(folders), folders, results, strict=True)]


def _read(folder: Path) -> dict:
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no results.json: give a folder that recipes/evaluate.py wrote")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): evaluate again") from None
    tasks = results.get("tasks") if isinstance(results, dict) else None
    needed = {"version", "examples", "main", "metrics"}
    if not isinstance(tasks, dict) or not all(isinstance(t, dict) and needed <= set(t) for t in tasks.values()):
        raise ValueError(f"{path} has no tasks, each with {', '.join(sorted(needed))}: give a folder of an evaluation")
    return results


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths, of the same number of parts, that differ."""
    for parts in range(1, max((len(f.parts) for f in folders), default=1) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
