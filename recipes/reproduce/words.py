"""The findings of a study as one paragraph."""

from collections.abc import Sequence

from recipes.reproduce.plan import BASE, CELLS, CONTROLS


def in_words(found: dict) -> str:
    """What `findings.collect` found, in sentences.

    A difference is clear where its 95 % interval over seeds leaves out 0; one seed has no interval, so nothing is.
    """
    sentences = [_probes(found["probes"], "union", "single patches")]
    sentences += [_probes(found["probes"], "global-union", "whole images"), _above(found)]
    against = {cell: z["difference"] for cell, z in found["mean_z"].items() if cell != BASE}
    aligned = {cell: difference for cell, difference in against.items() if CELLS[cell][0] == "aligned"}
    sentences += [_compared(aligned, f"the VLM of the original backbone with a {CELLS[BASE][1]} projector")]
    sentences += [_compared(found["controls"], "their controls, whose projector has the same size", CONTROLS)]
    meaning = "“Clearly” means that the 95 % interval over seeds leaves out 0."
    if len(found["image_level"]) == 1:
        meaning = "This is one seed, so nothing is known of how sure these differences are."
    return " ".join([*filter(None, sentences), meaning])


def _probes(rows: Sequence[dict], labels: str, what: str) -> str:
    """How alignment changed what probes find."""
    rows = [row for row in rows if row["labels"] == labels]
    changes = [f"{row['original']['mean']:.3f} to {row['aligned']['mean']:.3f} ({row['head']} head)" for row in rows]
    directions = {_direction(row["difference"], "clearly raised", "clearly lowered") for row in rows}
    verb = directions.pop() if len(directions) == 1 else "changed, not with every head clearly or alike,"
    return (
        f"Alignment {verb or 'did not clearly change'} the macro recall of probes of {what}: from {_listed(changes)}."
    )


def _above(found: dict) -> str:
    """How many cells do better than answers given without looking."""
    best, cells = {}, 0
    for task, by_cell in found["benchmarks"].items():
        prior = max(value for value in found["lines"][task].values() if value is not None)
        best[task] = sum(score["mean"] > prior for score in by_cell.values())
        cells = len(by_cell)
    if set(best.values()) == {cells}:
        return f"On all {len(best)} benchmarks all {cells} VLMs score above the answer prior and the majority class."
    told = [f"{count} of {cells} VLMs on {task}" for task, count in best.items()]
    return f"The answer prior and the majority class are exceeded by {_listed(told)}."


def _compared(differences: dict[str, dict], other: str, controls: dict[str, str] | None = None) -> str:
    """How mean z-scores of cells differ from those of another cell, or of their controls."""
    if not differences:
        return ""
    parts = []
    for verdict in ("clearly higher", "clearly lower", None):
        of = {
            cell: difference
            for cell, difference in differences.items()
            if _direction(difference, "clearly higher", "clearly lower") == verdict
        }
        told = [
            f"“{cell}”{f' against “{controls[cell]}”' if controls else ''} ({difference['mean']:+.2f})"
            for cell, difference in of.items()
        ]
        if told:
            parts.append(f"{verdict or 'not clearly different'} for {_listed(told)}")
    return f"Against {other}, the mean z-score is {'; '.join(parts)}."


def _direction(difference: dict, up: str, down: str) -> str | None:
    """Which way a difference goes, None where its interval holds 0 or is not known."""
    if difference["interval"] is None or difference["interval"][0] <= 0 <= difference["interval"][1]:
        return None
    return up if difference["mean"] > 0 else down


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
