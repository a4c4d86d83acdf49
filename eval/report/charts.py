"""Charts of scores, as SVG: bars with intervals, differences, and z-scores of several runs around a circle."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLOURS = ("#d62728", "#1f6fd6", "#e08a00", "#8e44ad", "#0f9a9a", "#7f5539", "#e377c2", "#5f6b7a")  # of runs
ALONE = "#3b6fb6"
MARKS = {  # of a row: name in the legend, and line
    "chance": ("chance", ":"),
    "majority": ("majority class", "-"),
    "prior": ("answer prior", "--"),
    "blind": ("without looking", "--"),
}


def colour(number: int) -> str:
    """The colour of a run among several, by its place."""
    return COLOURS[number % len(COLOURS)]


def bars(rows: Sequence[Mapping[str, Any]], runs: Sequence[str], *, title: str, x: str, y: str) -> bytes:
    """Horizontal bars of scores, an SVG. The axis ends at 100 %, where intervals, which may go beyond, are cut.

    Args:
        rows: Each with `label`, and by run `scores` and `intervals` (absent or None where there is none); what is known
            of `MARKS` is marked.
        runs: Names, in the order of their bars.
        title: Above the chart.
        x: What the bars are, such as "accuracy": label of their axis.
        y: What the rows are, such as "task".
    """
    thick = 0.8 / len(runs)

    def draw(figure) -> None:
        axes = figure.subplots()
        for place, run in enumerate(runs):
            for row, entry in enumerate(rows):
                score, found = entry["scores"].get(run), entry["intervals"].get(run)
                if score is None:
                    continue
                height = row + (place - (len(runs) - 1) / 2) * thick
                axes.barh(height, score, thick * 0.9, color=colour(place) if len(runs) > 1 else ALONE)
                if found:
                    found = [min(max(value, 0.0), 1.0) for value in found]
                    sides = [[max(0.0, score - found[0])], [max(0.0, found[1] - score)]]
                    axes.errorbar(score, height, xerr=sides, color="#222", capsize=2, linewidth=1)
                end = max(score, found[1] if found else 0)
                axes.text(end + 0.012, height, f"{score:.1%}", va="center", fontsize=8)
        for name, (text, style) in MARKS.items():
            there = [(row, entry[name]) for row, entry in enumerate(rows) if entry.get(name) is not None]
            for number, (row, value) in enumerate(there):
                label = text if not number else None
                ends = [row - 0.46, row + 0.46]
                axes.plot([value, value], ends, color="#222", linestyle=style, label=label, clip_on=False)
        if len(runs) > 1:
            for place, run in enumerate(runs):
                if any(entry["scores"].get(run) is not None for entry in rows):
                    axes.barh(0, 0, color=colour(place), label=plain(run))
        axes.set_yticks(range(len(rows)), [plain(entry["label"]) for entry in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], [f"{tick}%" for tick in range(0, 101, 20)])
        axes.set_title(plain(title, 80), loc="left", fontsize=10)
        axes.set_xlabel(plain(x)), axes.set_ylabel(plain(y))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#ddd", linewidth=0.6)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", bbox_to_anchor=(1.09, 1), fontsize=8, frameon=False)

    return _svg(draw, (7.6, 0.9 + len(rows) * max(0.34, 0.2 * len(runs))))


def differences(rows: Sequence[Mapping[str, Any]], *, title: str, x: str, y: str) -> bytes:
    """Differences as points with their intervals beside a line at 0, an SVG.

    Args:
        rows: Each with `label`, `mean` and `interval` (None where there is none).
        title: Above the chart.
        x: What is compared, label of the axis.
        y: What the rows are.
    """
    ends = [value for row in rows for value in (row["mean"], *(row["interval"] or ()))]
    reach = 1.1 * max(abs(end) for end in ends) or 1.0

    def draw(figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color="#888", linewidth=1.2)
        for height, row in enumerate(rows):
            low, high = row["interval"] or (row["mean"], row["mean"])
            axes.plot([low, high], [height, height], color=ALONE, linewidth=2.2, alpha=0.55)
            axes.plot(row["mean"], height, color=ALONE, marker="o", markersize=6)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            told = f"{row['mean']:+.3f}"
            axes.text(row["mean"], height - 0.2, told, ha="center", va="bottom", fontsize=8, bbox=behind)
        axes.set_yticks(range(len(rows)), [plain(row["label"], 80) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.7)
        axes.set_xlim(-reach, reach)
        axes.set_title(plain(title, 80), loc="left", fontsize=10)
        axes.set_xlabel(plain(x, 80)), axes.set_ylabel(plain(y))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#ddd", linewidth=0.6)
        axes.set_axisbelow(True)

    return _svg(draw, (5.2, 1.0 + 0.5 * len(rows)))


def radar(labels: Sequence[str], values: Mapping[str, Sequence[float]], *, title: str) -> bytes:
    """z-scores of several runs, each a closed line around a circle, an SVG; the mean, 0, is a thicker ring.

    Args:
        labels: Of the spokes, three at least.
        values: By run, one a spoke.
        title: Above the chart.
    """
    import numpy as np

    angles = np.linspace(0, 2 * np.pi, len(labels), endpoint=False)
    reach = max(1.0, *(abs(value) for line in values.values() for value in line)) * 1.15

    def draw(figure) -> None:
        axes = figure.subplots(subplot_kw={"projection": "polar"})
        axes.set_theta_offset(np.pi / 2)
        axes.set_theta_direction(-1)
        axes.set_ylim(-reach, reach)
        around = np.linspace(0, 2 * np.pi, 200)
        axes.plot(around, np.zeros_like(around), color="#888", linewidth=1.2)
        for place, (run, line) in enumerate(values.items()):
            closed = [*angles, angles[0]], [*line, line[0]]
            axes.plot(*closed, color=colour(place), linewidth=1.8, marker="o", markersize=3.5, label=plain(run))
            axes.fill(*closed, color=colour(place), alpha=0.08)
        axes.set_xticks(angles, [plain(label) for label in labels])
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = round(float(np.sin(angle)), 6)
            label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
        ticks = [tick for tick in (-3, -2, -1, 0, 1, 2, 3) if abs(tick) < reach]
        axes.set_yticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks], fontsize=7, color="#666")
        axes.grid(color="#ddd", linewidth=0.6)
        axes.spines["polar"].set_color("#ccc")
        axes.set_title(plain(title, 80), fontsize=10, pad=16)
        axes.set_xlabel("outwards: z-score; thicker ring: 0, the mean", fontsize=8, labelpad=8)
        axes.legend(loc="upper left", bbox_to_anchor=(1.15, 1.05), fontsize=8, frameon=False)

    return _svg(draw, (6.4, 4.8))


def plain(text: str, length: int = 36) -> str:
    """Text that every font and XML can show, not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(text))
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2 - 1) :]}"


def _svg(draw: Callable, size: tuple[float, float]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = io.BytesIO()
    # dollar signs are no formulas; the same chart is the same file
    settings = {"text.parse_math": False, "svg.hashsalt": "eval", "font.size": 9}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of scripts that the font has not
        figure = Figure(figsize=size)
        draw(figure)
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return file.getvalue()
