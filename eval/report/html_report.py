"""What an evaluation found: a table for the terminal, and one self-contained page of charts and answers to look at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import charts, gallery, pages
from eval.report.compare import common_records, compare, difference_rows, signed, z_score_rows
from eval.report.runs import Run, read_runs
from eval.report.tables import ends, percent
from eval.scoring import bootstrap
from vision_backbones.files import write_text
from vision_backbones.table import table

TEMPLATE = Path(__file__).with_name("report.html")
MOST_ERRORS = 50  # listed a task and run


def scores_table(results: dict[str, Any]) -> str:
    """The content of `results.json` as a table, for the terminal.

    Intervals are those of `intervals` in a task's results (from `bootstrap.intervals`), "-" where there are none.
    """
    header, rows = _score_rows(results["tasks"])
    return table(rows, header, left=1)


def write_report(out: Path, others: Sequence[Path] = ()) -> Path:
    """Writes `out/report.html` from the evaluation `out`, compared with others if there are any; returns the path.

    Raises:
        ValueError: A folder is no evaluation, or the runs cannot be compared.
    """
    runs = read_runs([out, *others])
    return write_page(Path(out) / "report.html", runs, compare(runs) if others else None)


def write_page(path: Path, runs: Sequence[Run], comparison: dict | None) -> Path:
    """Writes one HTML page that needs no other file; returns its path.

    Nothing that a model said can act: all text is escaped, and the page forbids scripts.

    Args:
        path: Of the page.
        runs: One, or those that were compared.
        comparison: What `compare` gave of them; None for one run.
    """
    sections = [_section(key, runs, comparison) for key in dict.fromkeys(key for run in runs for key in run.tasks)]
    names = [run.name for run in runs]
    page = pages.render(
        TEMPLATE,
        title=" · ".join(names) if comparison else f"Evaluation of {runs[0].results.get('model', names[0])}",
        runs=[
            {
                "name": run.name,
                "colour": charts.colour(place) if comparison else None,
                "model": run.results.get("model"),
                "about": _pretty({name: value for name, value in run.results.items() if name != "tasks"}),
                "scores": _score_rows(
                    run.tasks | {s["key"]: s["entries"][run.name] for s in sections if run.name in s["entries"]}
                ),
            }
            for place, run in enumerate(runs)
        ],
        overview=charts.bars(
            [section["row"] for section in sections], names, title="Scores", x="main metric of a task", y="task"
        ),
        comparison=comparison and _comparison(comparison),
        sections=sections,
        truth=gallery.TRUTH,
        predicted=charts.colour(0),
        resamples=bootstrap.RESAMPLES,
    )
    write_text(path, page, errors="replace")  # models may say half of a surrogate pair
    return path


def _score_rows(tasks: dict[str, dict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of text; columns that are empty everywhere are left out."""
    columns = {
        "task": lambda key, task: key,
        "examples": lambda key, task: f"{task['examples']:,}",
        "metric": lambda key, task: task["main"].replace("_", " "),
        "score": lambda key, task: percent(task["metrics"].get(task["main"])),
        "95 % interval": lambda key, task: ends(task.get("intervals", {}).get(task["main"])),
        "majority": lambda key, task: percent(task.get("majority")),
        "chance": lambda key, task: percent(task.get("chance")),
        "parse failures": lambda key, task: percent(task["metrics"].get("parse_failures")),
        "errors": lambda key, task: f"{task['errors']:,}" if task.get("errors") else "-",
        "questions/s": lambda key, task: (
            f"{task['questions_per_second']:.1f}" if task.get("questions_per_second") else "-"
        ),
    }
    cells = {name: [tell(key, task) for key, task in tasks.items()] for name, tell in columns.items()}
    kept = {name: column for name, column in cells.items() if name != "errors" or set(column) - {"-"}}
    return tuple(kept), list(zip(*kept.values(), strict=True))


def _section(key: str, runs: Sequence[Run], comparison: dict | None) -> dict:
    """What the page says of one task."""
    having = [run for run in runs if key in run.tasks]
    compared = (comparison or {"tasks": {}})["tasks"].get(key)
    every = [run.records(key) for run in having]
    entries = {}
    for run, records in zip(having, every, strict=True):
        entry = run.tasks[key]
        found = entry.get("intervals") or bootstrap.intervals(records, entry["metrics"], entry["main"])
        entries[run.name] = entry | {"intervals": found}
    main = compared["main"] if compared else entries[having[0].name]["main"]
    scores = compared["scores"] if compared else {run: entry["metrics"] for run, entry in entries.items()}
    spans = compared["intervals"] if compared else {run: entry["intervals"] for run, entry in entries.items()}
    first = entries[having[0].name]
    row = _row(key, main, scores, spans) | {name: first.get(name) for name in ("chance", "majority")}
    names = dict.fromkeys(name for by_name in scores.values() for name in by_name if name.startswith("accuracy/"))
    parts = [_row(name.removeprefix("accuracy/"), name, scores, spans) for name in names]
    rows, about = [row | {"label": "all"}, *parts], {"title": f"{key}: parts of the examples", "y": "examples"}
    chart = charts.bars(rows, [run.name for run in runs], x="accuracy", **about) if parts else None
    shown, chosen = [], 0
    if len(having) == len(runs) or len(having) > 1:
        records = common_records(key, having)[0] if len(having) > 1 else every
        shown, chosen = gallery.cards(key, having, records, Path(having[0].results.get("data_root") or "."))
    return {
        "key": key,
        "anchor": f"task-{key}",
        "entries": entries,
        "row": row,
        "score": " / ".join(percent(scores.get(run.name, {}).get(main)) for run in runs),
        "chart": chart,
        "metrics": _metric_rows({run.name: run.tasks[key]["metrics"] for run in having}),
        "prompt": first.get("prompt"),
        "cards": shown,
        "chosen": chosen,
        "errors": [_errors(run.name, records) for run, records in zip(having, every, strict=True)],
        "about": {
            run: {name: entry.get(name) for name in ("version", "split", "examples", "seconds", "fingerprint")}
            for run, entry in entries.items()
        },
    }


def _row(label: str, name: str, scores: dict, spans: dict) -> dict:
    return {
        "label": label,
        "scores": {run: by_name.get(name) for run, by_name in scores.items()},
        "intervals": {run: by_name.get(name) for run, by_name in spans.items()},
    }


def _metric_rows(metrics: dict[str, dict[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a column a metric, a row a part of the examples and run."""
    names = dict.fromkeys(name for by_name in metrics.values() for name in by_name)
    columns = list(dict.fromkeys(name.partition("/")[0] for name in names))
    parts = list(dict.fromkeys(name.partition("/")[2] for name in names))
    rows = []
    for part in parts:
        for run, by_name in metrics.items():
            values = [by_name.get(f"{column}/{part}" if part else column) for column in columns]
            cells = ["-" if value is None else f"{value:.3f}" for value in values]
            rows.append([part or "all", *([run] if len(metrics) > 1 else []), *cells])
    header = ["of", *(["run"] if len(metrics) > 1 else []), *(column.replace("_", " ") for column in columns)]
    return header, rows


def _errors(run: str, records: Sequence[dict]) -> dict:
    failed = [record for record in records if record.get("error")]
    return {"run": run, "count": len(failed), "records": failed[:MOST_ERRORS]}


def _comparison(comparison: dict) -> dict:
    """Tables, the chart of z-scores, and notes."""
    z = comparison["z_scores"]
    spokes = [
        (key, task["main"])
        for key, task in comparison["tasks"].items()
        if all(z[run].get(key, {}).get(task["main"], {}).get("z_score") is not None for run in z)
    ]
    values = {run: [z[run][key][main]["z_score"] for key, main in spokes] for run in z}
    by_task = [
        [key, *(signed(z[run].get(key, {}).get(task["main"], {}).get("z_score")) for run in z)]
        for key, task in comparison["tasks"].items()
    ]
    return {
        "differences": difference_rows(comparison),
        "means": z_score_rows(comparison),
        "z_scores": (["task", *z], by_task),
        "radar": charts.radar([key for key, _ in spokes], values, title="z-scores by task")
        if len(spokes) >= 3
        else None,
        "notes": comparison["notes"],
    }


def _pretty(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False)
