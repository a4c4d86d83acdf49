"""How an evaluation's answers depend on what they should not: kinds of relation, sizes, places of options, wording."""

from collections import Counter
from collections.abc import Sequence

from eval.report.runs import Run
from eval.report.tables import ends, percent
from eval.scoring.bootstrap import bootstrap_interval
from eval.scoring.means import accuracy, split, wholes
from eval.scoring.units import units_of
from eval.task import Record
from vision_backbones.table import table

KINDS = ("relation", "task", "category")  # names in examples' `info` that say what a question is about
SIZES = ("small third", "middle third", "large third")
SWAPPED = "+swapped"
FEWEST = 5  # questions of a kind that get a row of their own


def robustness(run: Run) -> dict:
    """What is known of it, JSON-able; every part is empty where an evaluation has nothing of it.

    Returns:
        `kinds` and `sizes`: rows of task, of what, questions (or the groups that a task is scored by), score and its
        95 % interval (bootstrap over images); sizes are thirds of the true boxes by the root of their area, as a share
        of the image's. `options`: by task, which options were said and were right, as shares, and `bias`, half the sum
        of the differences of the two: the least share of answers that would have to change for every option to be said
        as often as it is right.
        `swapped`: by task that was also evaluated as `TASK+swapped`, the share of statements with the same answer both
        ways, with its interval, and the share that is right both ways.
    """
    records = {key: run.records(key) for key in run.tasks}
    return {
        "kinds": [row for key, its in records.items() for row in _kinds(key, _counted(its, run.tasks[key]["main"]))],
        "sizes": [row for key, its in records.items() for row in _sizes(key, its)],
        "options": {key: bias for key, its in records.items() if (bias := _bias(its))},
        "swapped": {
            key: _consistent(its, records[key + SWAPPED]) for key, its in records.items() if key + SWAPPED in records
        },
    }


def robustness_tables(found: dict) -> str:
    """All of it as tables, for the terminal."""
    parts = []
    for title, rows in (("kind of question", found["kinds"]), ("size of the true box", found["sizes"])):
        lines = [(r["task"], r["of"], f"{r['questions']:,}", percent(r["score"]), ends(r["interval"])) for r in rows]
        parts += [table(lines, ("task", title, "questions", "score", "95 % interval"), left=2)] if lines else []
    lines = [
        (key, option, percent(said), percent(bias["right"][option]), percent(bias["bias"]) if place == 0 else "")
        for key, bias in found["options"].items()
        for place, (option, said) in enumerate(bias["said"].items())
    ]
    parts += [table(lines, ("task", "option", "said", "right", "bias"), left=2)] if lines else []
    lines = [
        (key, f"{row['pairs']:,}", percent(row["same"]), ends(row["interval"]), percent(row["both_right"]))
        for key, row in found["swapped"].items()
    ]
    header = ("task", "statements", "same answer swapped", "95 % interval", "right both ways")
    parts += [table(lines, header, left=1)] if lines else []
    return "\n\n".join(parts) or "nothing to tell: no task has kinds of question, boxes, options or swapped statements"


def _row(task: str, of: str, records: Sequence[Record]) -> dict:
    units, scores = units_of(records), [record["score"] for record in records]
    interval = list(bootstrap_interval(scores, units)) if len(set(units)) > 1 else None
    return {"task": task, "of": of, "questions": len(records), "score": accuracy(records), "interval": interval}


def _counted(records: Sequence[Record], main: str) -> Sequence[Record]:
    """What the main metric is a mean of: groups, where these stand for the task, else the questions themselves."""
    group = main.removesuffix("_accuracy")
    return wholes(records, group) if group in records[0].get("groups", {}) else records


def _kinds(task: str, records: Sequence[Record]) -> list[dict]:
    """A row for each kind of question, the commonest first; kinds with few questions share one."""
    name = next((name for name in KINDS if isinstance(records[0]["info"].get(name), str)), None)
    if name is None:
        return []
    parts = split(records, lambda record: record["info"].get(name))
    often = sorted((kind for kind, its in parts.items() if len(its) >= FEWEST), key=lambda kind: -len(parts[kind]))
    rest = [record for kind, its in parts.items() if len(its) < FEWEST for record in its]
    rows = [_row(task, str(kind), parts[kind]) for kind in often]
    return rows + ([_row(task, f"{len(parts) - len(often)} rarer ones", rest)] if rest and often else [])


def _sizes(task: str, records: Sequence[Record]) -> list[dict]:
    import numpy as np

    answers = [record["answer"] for record in records]
    if not all(
        isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box) for box in answers
    ):
        return []
    sides = np.array([max(0.0, (x2 - x1) * (y2 - y1)) ** 0.5 for x1, y1, x2, y2 in answers])
    thirds = np.quantile(sides, [1 / 3, 2 / 3])
    parts = split(list(zip(records, sides, strict=True)), lambda pair: int(np.searchsorted(thirds, pair[1])))
    rows = []
    for number in sorted(parts):
        its, lengths = zip(*parts[number], strict=True)
        rows.append(_row(task, f"{SIZES[number]} ({min(lengths):.2f} to {max(lengths):.2f} of the image)", its))
    return rows


def _bias(records: Sequence[Record]) -> dict | None:
    """Shares of options said and right, where all questions have the same ones."""
    options = records[0].get("options")
    if not options or any(record.get("options") != options for record in records):
        return None
    if any(record["answer"] not in options for record in records):
        return None
    said = Counter(record.get("choice") for record in records)
    right = Counter(record["answer"] for record in records)
    shares = {
        kind: {o: counts[o] / len(records) for o in options} for kind, counts in (("said", said), ("right", right))
    }
    return shares | {"bias": sum(abs(shares["said"][o] - shares["right"][o]) for o in options) / 2}


def _consistent(records: Sequence[Record], swapped: Sequence[Record]) -> dict:
    by_id = {record["id"]: record for record in records}
    pairs = [(by_id[other["id"]], other) for other in swapped if other["id"] in by_id]
    same = [float(one.get("choice") is not None and one.get("choice") == other.get("choice")) for one, other in pairs]
    units = units_of([one for one, _ in pairs])
    return {
        "pairs": len(pairs),
        "same": sum(same) / len(same) if same else None,
        "interval": list(bootstrap_interval(same, units)) if len(set(units)) > 1 else None,
        "both_right": sum(one["score"] == other["score"] == 1 for one, other in pairs) / len(pairs) if pairs else None,
    }
