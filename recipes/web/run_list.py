"""The list of runs below a folder: what each is, how far, how good, and what is wrong with its files."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.charts import plain
from prismatic.checkpoints.lock import LOCK, held
from recipes.web.run_files import TAIL, Folder, Unreadable, at, json_object, number, rows_of, settings_of
from recipes.web.run_scores import count, headline, scores_in

JOBS = {  # by settings that no other job has together
    "finetune": {"llm", "projector"},
    "align": {"teacher", "decoder_blocks"},
    "mim": {"teacher", "student"},
    "classify": {"mixup", "label_smoothing"},
    "probe": {"backbone", "labels"},
}
MARKS = ("config.yaml", "metrics.jsonl", "summary.json", "results.json", "compare.json")  # a folder with one is a run
DEPTH = 3  # of folders in which runs are looked for: a study has runs/reproduce/seed-0/align
ASIDE = ("logs", "wandb", "checkpoints")  # trackers keep a config.yaml of their own
MOST_PROBES = 64


@dataclass(frozen=True)
class Run:
    """A row of the list.

    Attributes:
        name: Path below the folder of runs, in letters that any font has; no two runs share it.
        folder: Of the run.
        job: One of `JOBS`, "evaluation", "comparison" or "?".
        state: "running", "finished", "interrupted" or "unknown".
        step: How far it is.
        loss: The last one of training.
        score: The main result, in words.
        changed: When something was written last, in seconds since 1970.
        remarks: What is wrong, each in a few words.
    """

    name: str
    folder: Path
    job: str = "?"
    state: str = "unknown"
    step: str = "-"
    loss: float | None = None
    score: str = "-"
    changed: float = 0.0
    remarks: tuple[str, ...] = ()


def list_runs(files: Folder) -> list[Run]:
    """All runs, the one that changed last first. Whatever lies there, this does not fail."""
    found = [_describe(files, folder, wrong) for folder, wrong in _folders(files, files.root, DEPTH)]
    return sorted(found, key=lambda run: (-run.changed, run.name))


def probe_folders(folder: Path) -> list[Path]:
    """The folders of the probes in a run, as far as they are begun: `RUN/BACKBONE/LABELS`."""
    found = [path for backbone in _folders_in(folder) for path in _folders_in(backbone)]
    begun = [path for path in found if any(_changed(path / name) for name in ("metrics.jsonl", "outcome.json"))]
    return begun[:MOST_PROBES]


def results_of(read: Callable, folder: Path, job: str) -> dict[str, Any]:
    """The `results.json` of a run, by its own probes while it has none, or that of an evaluation in its `eval`."""
    if found := read(folder / "results.json", json_object):
        return found
    if job != "probe":
        return read(folder / "eval" / "results.json", json_object) or {}
    outcomes = [read(path / "outcome.json", json_object) for path in probe_folders(folder)]
    return {"probes": [outcome for outcome in outcomes if outcome]}


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, links left out; none where there are no rights."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _folders(files: Folder, folder: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """Folders of runs, each with what keeps it from being read, or nothing."""
    try:
        paths = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for path in paths:
        if path.name.startswith(".") or path.name in ASIDE:
            continue
        if not files.inside(path):
            yield path, "a link to elsewhere, which is not followed"
            continue
        try:
            names = os.listdir(path)
        except OSError as error:
            yield path, f"cannot be read: {os.strerror(error.errno).lower()}"
            continue
        if not names:
            yield from [(path, "empty folder")] if depth == DEPTH else []
        elif not set(names).isdisjoint(MARKS):
            yield path, ""
        else:
            below = list(_folders(files, path, depth - 1)) if depth > 1 and not path.is_symlink() else []
            yield from below or ([(path, "")] if LOCK in names else [])


def _describe(files: Folder, folder: Path, wrong: str) -> Run:
    name = _name(folder.relative_to(files.root))
    if wrong:
        return Run(name, folder, changed=_changed(folder), remarks=(wrong,))
    look = _Look(files, folder)
    settings = look.read(folder / "config.yaml", settings_of) or {}
    summary = look.read(folder / "summary.json", json_object) or {}
    results = look.read(folder / "results.json", json_object) or {}
    job = next((job for job, names in JOBS.items() if names <= settings.keys()), "?")
    if not settings and not look.wrong:
        trained = summary or _changed(folder / "metrics.jsonl")
        job = "comparison" if _changed(folder / "compare.json") else "?" if trained else "evaluation"
    running = look.running()
    parts = probe_folders(folder) if job == "probe" else [folder]
    ended = {part: _changed(part / "outcome.json") > 0 for part in parts}
    newest = max(parts, key=lambda part: (not ended[part], _changed(part / "metrics.jsonl")), default=folder)
    rows = look.rows(newest, running)

    if job == "probe":
        finished, step = "probes" in results, f"{sum(ended.values())} of {_number_of_probes(settings)} probes"
    elif job in ("evaluation", "comparison"):
        finished, step = _tasks(results)
        finished |= job == "comparison"
    else:
        finished, step = bool(summary), progress(settings, summary, rows)
    damaged = any(told.startswith(("summary.json", "results.json")) for told in look.wrong)
    doubtful = job == "?" or running is None or damaged
    return Run(
        name,
        folder,
        job,
        state="running" if running else "finished" if finished else "unknown" if doubtful else "interrupted",
        step=step,
        loss=next((number(row["loss"]) for row in reversed(rows) if "loss" in row), None),
        score=headline(summary, rows, scores_in(results_of(look.read, folder, job))),
        changed=max(map(_changed, (newest / "metrics.jsonl", *(folder / mark for mark in MARKS)))) or _changed(folder),
        remarks=tuple(dict.fromkeys(look.wrong)),
    )


class _Look:
    """One look into a folder, which notes what is wrong there."""

    def __init__(self, files: Folder, folder: Path):
        self.files, self.folder, self.wrong = files, folder, []

    def read(self, path: Path, parse: Callable, **how) -> Any:
        try:
            return self.files.read(path, parse, **how)
        except Unreadable as error:
            self.wrong.append(str(error))
            return None

    def running(self) -> bool | None:
        """None where it cannot be known."""
        try:
            return self.files.inside(self.folder / LOCK) and held(self.folder)
        except OSError as error:
            self.wrong.append(f"{LOCK}: {os.strerror(error.errno or 0).lower()}")
            return None

    def rows(self, part: Path, running: bool | None) -> list[dict]:
        """The last rows of metrics."""
        rows, damaged, torn = self.read(part / "metrics.jsonl", rows_of, tail=TAIL) or ([], 0, False)
        if damaged:
            self.wrong.append(f"metrics.jsonl has {damaged} damaged {'line' if damaged == 1 else 'lines'}")
        if torn and not running:
            self.wrong.append("the last line of metrics.jsonl is cut off")
        return rows


def progress(settings: dict, summary: dict, rows: Sequence[dict]) -> str:
    """How many optimizer steps of how many are done, as far as that is known from the last rows of metrics."""
    step = rows[-1]["step"] if rows else count(summary.get("steps"))
    if step is None:
        return "-"
    step = max([step, *(row["step"] for row in rows)])
    total, epochs = settings.get("max_steps"), settings.get("epochs")
    if count(summary.get("steps")):
        total = summary["steps"]
    elif type(total) is not int and type(epochs) is int and (each := _steps_per_epoch(rows)):
        total = epochs * each
    if type(total) is int:
        return f"{step:,} of {total:,}"
    epoch = next((row["epoch"] for row in reversed(rows) if type(row.get("epoch")) is int), None)
    return f"{step:,}" if epoch is None or type(epochs) is not int else f"{step:,}, epoch {epoch + 1} of {epochs}"


def _steps_per_epoch(rows: Sequence[dict]) -> int | None:
    """From a row that ends an epoch, or the first step of another."""
    before = None
    for row in rows:
        step, epoch = row["step"], row.get("epoch")
        if type(epoch) is not int or step <= 0 or epoch < 0:
            continue
        if "loss" not in row and step % (epoch + 1) == 0:
            return step // (epoch + 1)
        if before and before[1] + 1 == epoch and before[0] + 1 == step and before[0] % epoch == 0:
            return before[0] // epoch
        before = step, epoch
    return None


def _number_of_probes(settings: dict) -> int | str:
    lists = [settings.get("backbone"), settings.get("labels")]
    return len(lists[0]) * len(lists[1]) if all(isinstance(found, list) for found in lists) else "?"


def _tasks(results: dict) -> tuple[bool, str]:
    """Whether all tasks that an evaluation was asked for are there, and how many are."""
    tasks, asked = results.get("tasks"), at(results, "settings", "tasks")
    there = {str(key) for key in tasks} if isinstance(tasks, dict) else set()
    wanted = there | {str(key) for key in asked} if isinstance(asked, list) else there
    return bool(there) and there == wanted, f"{len(there)} of {len(wanted)} tasks" if wanted else "-"


def _name(relative: Path) -> str:
    text = str(relative)
    shown = plain(text, 120)
    return shown if shown == text else f"{shown} ~{hashlib.sha256(os.fsencode(text)).hexdigest()[:6]}"


def _changed(path: Path) -> float:
    try:
        return path.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
