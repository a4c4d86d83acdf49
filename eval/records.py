"""Answers on disk: the records of a task, appended as they come, and the results of all tasks."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonlines

from eval.task import Record
from vision_backbones.files import describe, read_json, replacing, write_json

RESULTS, SAMPLES = "results.json", "samples.jsonl"


def stored(folder: Path, fingerprint: str) -> dict[str, Record]:
    """Records by example id, of a finished or interrupted evaluation with this fingerprint.

    Raises:
        ValueError: A record is none that an evaluation wrote.
    """
    records = {}
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):  # what has no line break was cut off
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("fingerprint") == fingerprint:
                check_record(record, f"{file}: line {number}")
                records[record["id"]] = record
    return records


def check_record(record: Record, where: str) -> None:
    """Raises ValueError where a record lacks what every record has."""
    if not isinstance(record.get("id"), str) or not isinstance(record.get("output"), str) or "answer" not in record:
        raise ValueError(f"{where} has no id, answer or output: delete the line, or start with --overwrite true")


def check_unchanged(folder: Path, entry: dict | None, fingerprint: str) -> None:
    """Raises ValueError where a task's samples are not those that `results.json` was written of."""
    file, known = folder / SAMPLES, (entry or {}).get("samples")
    if file.is_file() and known and entry.get("fingerprint") == fingerprint and describe(file)["sha256"] != known:
        raise ValueError(f"{file} was changed after it was written (SHA-256 differs): start with --overwrite true")


def appending(file: Path):
    """A jsonlines writer that continues a file after its last whole line, and flushes every line."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
    return jsonlines.open(file, "a", flush=True, dumps=json.dumps)


def write_samples(file: Path, samples: Sequence[Record]) -> None:
    """Writes judged records, all or nothing."""
    with replacing(file) as tmp_path, jsonlines.open(tmp_path, "w", dumps=json.dumps) as writer:
        writer.write_all(samples)  # by json's own dumps: outputs may hold lone surrogates


def check_errors(tasks: dict[str, dict], share: float) -> None:
    """Raises ValueError where more than this share of a task's questions ended in errors."""
    for key, task in tasks.items():
        if task["errors"] > share * task["examples"]:
            raise ValueError(
                f"{key}: {task['errors']:,} of {task['examples']:,} questions ended in errors (see samples.jsonl) and "
                f"count as wrong; --max_error_share {task['errors'] / task['examples']:.2g} would accept them"
            )


def read_results(out: Path) -> dict[str, Any]:
    """What `results.json` says; nothing where there is none.

    Raises:
        ValueError: It is damaged.
    """
    path = out / RESULTS
    return read_json(path, "delete it, or choose another --out", "tasks") if path.is_file() else {}


def write_results(out: Path, entry: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Adds tasks to `results.json`, beside those of earlier runs with the same model; returns the whole content."""
    path, before = out / RESULTS, read_results(out)
    old = before["tasks"] if before.get("model_fingerprint") == metadata["model_fingerprint"] else {}
    for key, new in entry.items():
        if new["questions_per_second"] is None and old.get(key, {}).get("fingerprint") == new["fingerprint"]:
            entry[key] = new | {name: old[key][name] for name in ("seconds", "questions_per_second")}
    results = metadata | {"tasks": old | entry}
    write_json(path, results)
    return results
