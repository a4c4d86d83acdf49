"""Runs compared on the same examples: paired differences, how sure they are, and z-scores over tasks."""

from collections.abc import Sequence
from pathlib import Path

from eval.report.runs import Run
from eval.report.tables import ends, percent
from eval.scoring.bootstrap import interval, p_value, resample
from eval.scoring.units import units_of
from eval.scoring.zscores import REFERENCE, aggregated, z_scores
from eval.task import Record
from vision_backbones.table import table


def compare(runs: Sequence[Run]) -> dict:
    """What is known of how the runs differ, JSON-able.

    Each task is compared on the examples that all runs that have it answered, by its main metric if that is accuracy
    or the mean of it over subsets, by the mean of the records' scores if it is anything else. Differences are those of
    every run to the first, with 95 % interval and two-sided p-value of a bootstrap over images that draws the same
    images in both; p-values are of each task alone, not corrected for their number.

    Returns:
        `runs` (name, folder, model, model_fingerprint); `notes`, what could not be compared; `tasks`, by task:
        examples, images, main, and by run scores, intervals and differences; `z_scores` of the main metrics;
        `aggregated_z_score`, their mean by run; and `reference_z_score`, the mean over what the reference averages.

    Raises:
        ValueError: There are not two runs, no task in common, or a task in different versions or splits.
    """
    if len(runs) < 2:
        raise ValueError(f"got {len(runs)} run: give two evaluation folders or more")
    notes, tasks, scores = [], {}, {run.name: {} for run in runs}
    for key in dict.fromkeys(key for run in runs for key in run.tasks):
        having = [run for run in runs if key in run.tasks]
        notes += [f"{key}: {run.name} has no results" for run in runs if run not in having]
        _check_same(key, having)
        if len(having) < 2:
            continue
        records, note = common_records(key, having)
        notes += note
        if records[0]:
            tasks[key] = _compared(key, runs[0].name, having, records, scores)
    if not tasks:
        raise ValueError("the runs have no examples in common: compare runs of the same tasks; " + "; ".join(notes[:3]))
    z = z_scores(scores, [(key, task["main"]) for key, task in tasks.items()])
    return {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "model": run.results.get("model"),
                "model_fingerprint": run.results.get("model_fingerprint"),
            }
            for run in runs
        ],
        "notes": notes,
        "tasks": tasks,
        "z_scores": z,
        "aggregated_z_score": aggregated(z),
        "reference_z_score": aggregated(z_scores(scores, REFERENCE)),
    }


def common_records(key: str, runs: Sequence[Run]) -> tuple[list[list[Record]], list[str]]:
    """Each run's records of the examples that all runs answered, in the same order; and a note if these are not all.

    Examples are the same if id, image, question and answer are.
    """
    by_example = [{_identity(record): record for record in run.records(key)} for run in runs]
    shared = [example for example in by_example[0] if all(example in other for other in by_example)]
    notes = []
    if any(len(records) != len(shared) for records in by_example):
        only = ", ".join(
            f"{len(records) - len(shared):,} of {len(records):,} are not in all runs in {run.name}"
            for run, records in zip(runs, by_example, strict=True)
            if len(records) != len(shared)
        )
        notes = [f"{key}: the runs answered different examples ({only}); compared on the {len(shared):,} in common"]
    return [[records[example] for example in shared] for records in by_example], notes


def comparison_table(comparison: dict) -> str:
    """Scores of all runs, differences to the first one, z-scores, and what was not compared, for the terminal."""
    (header, rows), (tasks, scores) = difference_rows(comparison), z_score_rows(comparison)
    tables = [table(rows, header, left=4), table(scores, tasks, left=1)]
    return "\n\n".join([*tables, *(["\n".join(comparison["notes"])] if comparison["notes"] else [])])


def difference_rows(comparison: dict) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: scores by task and run, and differences to the first run, as text."""
    names = [run["name"] for run in comparison["runs"]]
    rows = []
    for key, task in comparison["tasks"].items():
        for number, name in enumerate(names):
            size = f"{task['examples']:,} / {task['images']:,}"
            label = ("", "", "") if number else (key, size, task["main"].replace("_", " "))
            score = task["scores"].get(name, {}).get(task["main"])
            difference = task["differences"].get(name, {}).get(task["main"])
            rows.append((*label, name, percent(score), *_told(difference)))
    return ("task", "examples / images", "metric", "run", "score", f"minus {names[0]}", "95 % interval", "p"), rows


def z_score_rows(comparison: dict) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the mean z-scores of every run, over all tasks and over what the reference averages, as text."""
    kinds = ("aggregated_z_score", "reference_z_score")
    rows = [(r["name"], *(signed(comparison[kind][r["name"]]) for kind in kinds)) for r in comparison["runs"]]
    return ("run", "mean z-score", "of the reference's metrics"), rows


def default_folder(first: Path) -> Path:
    """Where a comparison is written: beside the first run."""
    first = Path(first).resolve()
    return first.with_name(f"{first.name}-compared")


def signed(value: float | None) -> str:
    """A z-score, with its sign."""
    return "-" if value is None else f"{value:+.2f}"


def _told(difference: dict | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    p = "-" if difference["p_value"] is None else f"{difference['p_value']:.4f}"
    return f"{100 * difference['difference']:+.1f}", ends(difference["interval"]), p


def _check_same(key: str, runs: Sequence[Run]) -> None:
    for what in ("version", "split", "main"):
        values = {run.name: run.tasks[key].get(what) for run in runs}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} in {name}" for name, value in values.items())
            raise ValueError(f"{key}: the task's {what} differs between the runs ({told}): evaluate again")


def _identity(record: Record) -> tuple[str, ...]:
    images = (record["image"], *record.get("more_images", ()))
    return record["id"], *images, record["question"], repr(record["answer"])


def _compared(key: str, base: str, runs: Sequence[Run], records: Sequence[Sequence[Record]], scores: dict) -> dict:
    """Results of one task, with differences to the run called `base` if it has the task; adds scores to `scores`."""
    drawn = resample(records)
    main, units = runs[0].tasks[key]["main"], units_of(records[0])
    task = {
        "examples": len(records[0]),
        "images": len(set(units)),
        "main": main if main in drawn[0] else "accuracy",
        "scores": {},
        "intervals": {},
        "differences": {},
    }
    for run, values in zip(runs, drawn, strict=True):
        scores[run.name][key] = task["scores"][run.name] = {name: value for name, (value, _) in values.items()}
        task["intervals"][run.name] = {name: interval(draws) for name, (_, draws) in values.items()}
    first, images = drawn[0], {"": task["images"]}
    for subset in {record["subset"] for record in records[0]} - {""}:
        its = [unit for unit, record in zip(units, records[0], strict=True) if record["subset"] == subset]
        images[subset] = len(set(its))
    for run, values in list(zip(runs, drawn, strict=True))[1:] if runs[0].name == base else []:
        task["differences"][run.name] = {
            name: _difference(
                value - first[name][0], draws - first[name][1], images.get(name.partition("/")[2], task["images"])
            )
            for name, (value, draws) in values.items()
        }
    return task


def _difference(difference: float, draws, images: int) -> dict:
    found = interval(draws)
    return {
        "difference": difference,
        "interval": found,
        "p_value": None if found is None else p_value(draws, images),
    }
