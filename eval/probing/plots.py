"""Probes for the eye: predicted patches over images, how reliable each class is, and backbones compared."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from vision_backbones.files import replacing

BLEND = 0.6  # how much of a patch is its class's colour
MOST_CLASSES = 40  # in the chart of classes
FEWEST = 10  # predictions that a point of a class's reliability is drawn of
MOST_NAMES = 24  # in the legend of the samples


def colour(number: int) -> tuple[float, float, float]:
    """The colour of a class, red, green and blue from 0 to 1; neighbours differ much."""
    return colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.95, 0.6)[number % 2], (0.95, 0.7, 0.85)[number % 3])


def paint(image: np.ndarray, present: np.ndarray, patch: int) -> np.ndarray:
    """An image, uint8 `[S, S, 3]`, with its patches in the colours of the classes in them; class 0 is left clear.

    Several classes share a patch as stripes, in order of their numbers. `present` is bool `[rows, columns, C]`.
    """
    present = present.copy()
    present[..., 0] &= ~present[..., 1:].any(-1)
    number = present.sum(-1)
    ordered = np.argsort(~present, axis=-1, kind="stable")  # those that are there come first
    stripe = np.arange(patch) * number[..., None] // patch
    classes = np.take_along_axis(ordered, stripe, -1) * (number > 0)[..., None]
    rows, columns = present.shape[:2]
    pixels = classes.reshape(rows, columns * patch).repeat(patch, 0)
    palette = np.array([colour(i) for i in range(present.shape[-1])]) * 255
    out = image.astype(float)
    inner = out[: rows * patch, : columns * patch]
    marked = (pixels > 0)[..., None]
    inner[:] = np.where(marked, BLEND * palette[pixels] + (1 - BLEND) * inner, inner)
    return out.round().astype(np.uint8)


def draw_samples(
    path: Path,
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    patch: int,
    names: Sequence[str],
    title: str,
) -> None:
    """Writes a sheet: images, their true patches, the predicted ones, and a legend of the most frequent classes.

    Labels are bool `[rows, columns, C]`, or `[C]` of whole images, which are then listed in words.
    """
    local = truth[0].ndim == 3
    rows = [("image", images, None), ("true", images, truth), ("predicted", images, predicted)]
    count = len(images)
    figure = Figure(figsize=(2.2 * count + 0.6, 2.2 * len(rows) + 1.4) if local else (2.2 * count, 4.6))
    figure.suptitle(title, fontsize=10)
    if not local:
        for column, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
            axes.imshow(images[column])
            axes.axis("off")
            lines = []
            for name, labels in (("true", truth[column]), ("predicted", predicted[column])):
                found = [_short(names[i]) for i in np.flatnonzero(labels)]
                lines += [f"{name}:", *(f"  {n}" for n in found[:8]), *(["  ..."] if len(found) > 8 else [])]
            axes.text(0, -0.04, "\n".join(lines), fontsize=8, va="top", transform=axes.transAxes)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.45)
        _write(figure, path)
        return
    grid = figure.subplots(len(rows), count, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
    for axes_row, (name, pictures, labels) in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(name)
        for column, axes in enumerate(axes_row):
            picture = pictures[column]
            axes.imshow(picture if labels is None else paint(picture, labels[column], patch))
            axes.set_xticks([]), axes.set_yticks([])
    shown = sum(np.asarray(part).reshape(-1, len(names)).sum(0) for part in (*truth, *predicted))
    frequent = [i for i in np.argsort(-shown, kind="stable")[:MOST_NAMES] if i and shown[i]]
    handles = [Patch(color=colour(i), label=_short(names[i])) for i in frequent]
    figure.legend(handles=handles, loc="lower center", ncol=max(1, min(8, count)), fontsize=7, frameon=False)
    figure.subplots_adjust(left=0.05, right=0.99, top=0.93, bottom=0.14)
    _write(figure, path)


def draw_classes(
    path: Path,
    names: Sequence[str],
    recall: np.ndarray,
    precision: np.ndarray,
    there: np.ndarray,
    reliability: np.ndarray,
    title: str,
) -> None:
    """Writes two charts: recall and precision of each class, frequent ones first; and how far probabilities are true.

    Args:
        path: Of the picture.
        names: Of the classes.
        recall: `[C]`, nan where there is none; as is `precision`.
        precision: `[C]`.
        there: How often a class occurs, `[C]`; those that never do are left out.
        reliability: Of `metrics.reliability`, `[3, C, bins]`.
        title: Above the charts.
    """
    order = [i for i in np.argsort(-there, kind="stable") if there[i]][:MOST_CLASSES]
    figure = Figure(figsize=(12, max(4.5, 0.2 * len(order) + 1.2)))
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.3, 1]})
    figure.suptitle(title, fontsize=10)
    y = np.arange(len(order))
    left.barh(y - 0.2, recall[order], 0.38, label="recall", color="#3b6fb6")
    left.barh(y + 0.2, np.nan_to_num(precision[order]), 0.38, label="precision", color="#e0a03c")
    left.set_yticks(y, [f"{_short(names[i])} ({there[i]:,})" for i in order], fontsize=8)
    left.invert_yaxis()
    _shares(left, "x"), left.set_xlabel("recall, precision"), left.set_ylabel("class")
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=2, fontsize=8, frameon=False)
    left.set_title(
        f"each class (how often it is there), {len(order)} of {int((there > 0).sum())}", fontsize=9, loc="left"
    )

    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":", label="as it should be")
    curves = [(i, _curve(reliability[:, i], FEWEST)) for i in order]
    curves = [(i, curve) for i, curve in curves if curve[0].size > 1]  # one point alone makes no line
    for number, (i, curve) in enumerate(curves):
        name = None if number else f"a class ({len(curves)} of them)"
        right.plot(*curve, color=colour(i), linewidth=0.8, alpha=0.6, label=name)
    every = _curve(reliability.sum(1), 1)
    right.plot(*every, color="black", linewidth=2, marker="o", markersize=4, label="all classes", clip_on=False)
    _shares(right, "xy")
    right.set_xlabel("predicted probability"), right.set_ylabel("share that is there")
    right.legend(fontsize=8, loc="upper left")
    right.set_title("reliability", fontsize=9)
    figure.tight_layout()
    _write(figure, path)


def _curve(counts: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    number, probability, right = counts[:, counts[0] >= fewest]
    return probability / number, right / number


def draw_comparison(path: Path, results: Sequence[dict]) -> None:
    """Writes what several backbones know of parts and of the whole: last epoch, bars are 95 % intervals.

    Left, macro recall with local labels (the first kind, where both were probed) against `global-union`; right, recall
    by the size of what is to be found. The chart that has nothing to show is left out; without local labels nothing is
    written.
    """
    kind = next((row["labels"] for row in results if row["labels"] != "global-union"), None)
    local = {row["backbone"]: row["last"] for row in results if row["labels"] == kind}
    whole = {row["backbone"]: row["last"] for row in results if row["labels"] == "global-union"}
    both = [name for name in local if name in whole]
    if kind is None:
        return
    figure = Figure(figsize=(11 if both else 6, 4.6))
    charts = list(np.atleast_1d(figure.subplots(1, 2 if both else 1)))
    marks = {name: {"color": f"C{i % 10}", "marker": "os^DvPX*"[i // 10 % 8]} for i, name in enumerate(local)}
    if both:
        axes = charts.pop(0)
        for name in both:
            (x, x_bar), (y, y_bar) = (_with_bar(part[name]) for part in (whole, local))
            axes.errorbar(x, y, xerr=x_bar, yerr=y_bar, label=name, capsize=2, linestyle="none", **marks[name])
        axes.set_xlabel("macro recall, whole image"), axes.set_ylabel(f"macro recall, patches ({kind})")
        axes.set_title("local against global", fontsize=10), axes.legend(fontsize=8)
        axes.margins(0.2)
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        _shares(axes, "xy", (max(0, left), min(1, right)), (max(0, low), min(1, high)))
    (axes,) = charts
    for name, row in local.items():
        points = [((s["above"] + s["to"]) / 2, s["recall"]) for s in row["sizes"] if s["recall"] is not None]
        axes.plot(*zip(*points, strict=True), label=name, clip_on=False, **marks[name])
    axes.set_xlabel("size: share of the image's patches"), axes.set_ylabel(f"recall, patches ({kind})")
    _shares(axes, "xy", (0, min(1, axes.get_xlim()[1])))
    axes.set_title("recall by size", fontsize=10), axes.legend(fontsize=8)
    figure.tight_layout()
    _write(figure, path)


def _shares(axes, which: str, x: tuple[float, float] = (0, 1), y: tuple[float, float] = (0, 1)) -> None:
    """Makes axes those of shares, in percent, which end at 100 % at most."""
    if "x" in which:
        axes.set_xlim(*x), axes.xaxis.set_major_formatter(PercentFormatter(1))
    if "y" in which:
        axes.set_ylim(*y), axes.yaxis.set_major_formatter(PercentFormatter(1))


def _with_bar(row: dict) -> tuple[float, list[list[float]] | None]:
    value, ends = row["scores"]["macro_recall"], row["intervals"]["macro_recall"]
    return value, ends and [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]


def sample_rows(rows: int, count: int = 8) -> list[int]:
    """Row numbers, spread evenly."""
    return list(range(0, rows, math.ceil(rows / count)))


def _short(name: str) -> str:
    return name.split(",")[0]


def _write(figure: Figure, path: Path) -> None:
    with replacing(path) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=110)
