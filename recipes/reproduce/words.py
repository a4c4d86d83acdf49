"""The findings of a study as one paragraph."""

from collections.abc import Sequence

from recipes.reproduce.plan import CLAIM, TASKS

DECIDED = 0.05  # p-value by Holm's method below which a planned comparison is decided


def in_words(found: dict) -> str:
    """What `findings.collect` found, in sentences.

    Probes changed clearly where the 95 % interval over seeds leaves out 0, planned comparisons are decided by Holm's
    method; one seed has neither, so nothing is clear.
    """
    sentences = [_probes(found["probes"], "union", "single patches")]
    sentences += [_probes(found["probes"], "global-union", "whole images"), _above(found)]
    sentences += [_compared(found["comparisons"])]
    if len(found["seeds"]) == 1:
        return " ".join([*sentences, "This is one seed, so nothing is known of how sure these differences are."])
    sentences += [_claim(found["comparisons"])]
    sentences += ["Probes change “clearly” where the 95 % interval over seeds leaves out 0."]
    return " ".join(sentences)


def _probes(rows: Sequence[dict], labels: str, what: str) -> str:
    """How alignment changed what probes find."""
    rows = [row for row in rows if row["labels"] == labels]
    changes = [f"{row['original']['mean']:.3f} to {row['aligned']['mean']:.3f} ({row['head']} head)" for row in rows]
    told = f"the macro recall of probes of {what}: from {_listed(changes)}."
    if any(row["difference"]["interval"] is None for row in rows):
        return f"Alignment changed {told}"
    directions = {_direction(row["difference"]) for row in rows}
    verb = directions.pop() if len(directions) == 1 else "changed, not with every head clearly or alike,"
    return f"Alignment {verb or 'did not clearly change'} {told}"


def _above(found: dict) -> str:
    """How many cells do better than answers given without looking."""
    above, cells = {}, len(found["means"])
    for task, by_cell in found["benchmarks"].items():
        blind = max(value for value in found["lines"][task].values() if value is not None)
        above[task] = sum(score["mean"] > blind for score in by_cell.values())
    if set(above.values()) == {cells}:
        return f"On all {len(above)} benchmarks all {cells} VLMs score above what answers without looking reach."
    told = [f"{count} of {cells} VLMs on {task}" for task, count in above.items()]
    return f"What answers without looking reach is exceeded by {_listed(told)}."


def _compared(rows: Sequence[dict]) -> str:
    """The planned comparisons, by what was decided."""
    parts = []
    for verdict in ("higher", "lower", "not decided"):
        told = [f"{_named(row['cell'], row['other'])} ({row['mean']:+.3f})" for row in rows if _verdict(row) == verdict]
        if told and rows[0]["interval"] is None:
            return f"The mean score of {len(TASKS)} benchmarks differs as follows: {_listed(told)}."
        if told:
            parts.append(f"{verdict} for {_listed(told)}")
    return f"Of the planned comparisons by the mean score of {len(TASKS)} benchmarks, it is {'; '.join(parts)}."


def _claim(rows: Sequence[dict]) -> str:
    """Whether alignment is said to help the VLM with the paper's plain projector."""
    verdicts = {(row["cell"], row["other"]): _verdict(row) for row in rows}
    claim = "The claim that alignment helps the VLM with gelu-mlp"
    failed = [_named(*pair) for pair in CLAIM if verdicts[pair] != "higher"]
    if not failed:
        return f"{claim} is made: both comparisons that it needs are decided in its favour."
    return f"{claim} is not made; not decided in its favour: {_listed(failed)}."


def _named(cell: str, other: str) -> str:
    return f"“{cell}” against “{other}”"


def _verdict(row: dict) -> str:
    if row["holm"] is None or row["holm"] >= DECIDED:
        return "not decided"
    return "higher" if row["mean"] > 0 else "lower"


def _direction(difference: dict) -> str | None:
    """Which way a difference goes, None where its interval holds 0."""
    low, high = difference["interval"]
    return None if low <= 0 <= high else "clearly raised" if difference["mean"] > 0 else "clearly lowered"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
