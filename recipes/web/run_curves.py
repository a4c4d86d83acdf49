"""The chart of training: losses and what was measured besides, readable on narrow pages and dark ones."""

import io
import re
import threading
import warnings
from collections.abc import Sequence

import numpy as np

from eval.report.charts import colour
from eval.report.tables import percent
from recipes.web.run_html import escaped
from recipes.web.run_metrics import SHARES, Curve

MOST_CURVES = 8  # have a colour of their own
MOST_POINTS = 600  # of a line that is drawn
HIGHEST = 1e30  # value that is drawn
MARKERS, GLYPHS = "os^DvP*X", "●■▲◆▼✚★✖"
_drawing_now = threading.Lock()  # settings of matplotlib are those of all threads
INK, FAINT = "#0a0b0c", "#0a0b0d"  # stand for the page's own colour of text, which dark mode changes


def chart(curves: Sequence[tuple[str, Curve]], *, log: bool = False, rate: bool = False) -> str:
    """HTML of a drawing with a legend: training losses and what was measured besides; readable on narrow pages, too.

    Args:
        curves: Each with a name.
        log: Draw losses on a logarithmic axis.
        rate: Draw learning rates as well.
    """
    shown = [(name, curve) for name, curve in curves if len(curve.steps) or curve.points][:MOST_CURVES]
    if not shown:
        return '<p class="runs-quiet">No losses are recorded yet.</p>'
    legend = "".join(
        f'<li><span style="color: {colour(place)}" aria-hidden="true">{GLYPHS[place]}</span> {escaped(name)}'
        f'<span class="runs-quiet">{escaped(_told(curve))}</span></li>'
        for place, (name, curve) in enumerate(shown)
    )
    left_out = len([curve for _, curve in curves if len(curve.steps) or curve.points]) - len(shown)
    more = f" {left_out} more curves are not drawn." if left_out else ""
    axis = ", on a logarithmic axis" if log else ""
    label = escaped(f"Losses of {', '.join(name for name, _ in shown)} by optimizer step{axis}")
    drawings = "".join(
        f'<div class="runs-{kind}">{_drawing([c for _, c in shown], width, log, rate, kind, label)}</div>'
        for kind, width in (("narrow", 4.6), ("wide", 10.5))
    )
    return (
        f'<figure class="runs-chart">{drawings}<ul>{legend}</ul><figcaption class="runs-quiet">Thin: the loss of every '
        f"step. Thick: its running average. Dotted with marks: validation loss.{more}</figcaption></figure>"
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """The running average of an array: exponential, over about a fortieth of it, without bias at its start."""
    from scipy.signal import lfilter

    keep = 1 - 2 / (max(4, len(values) / 40) + 1)
    return lfilter([1 - keep], [1, -keep], values) / (1 - keep ** np.arange(1, len(values) + 1))


def thinned(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """About so many points of a line, the lowest and the highest of every stretch among them: no peak is lost."""
    if len(values) <= most:
        return steps, values
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    places = {0, len(values) - 1}
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        places |= {start + int(values[start:stop].argmin()), start + int(values[start:stop].argmax())}
    kept = sorted(places)
    return steps[kept], values[kept]


def _told(curve: Curve) -> str:
    """The numbers of a curve that matter most, in words."""
    said = [f"step {curve.steps[-1]:,.0f}, loss {curve.losses[-1]:.4g}"] if len(curve.steps) else []
    for name, (steps, values) in curve.points.items():
        best = min if name == "validation_loss" else max
        value, step = best(((v, s) for v, s in zip(values, steps, strict=True) if v == v), default=(float("nan"), 0))
        shown = percent(value) if name in SHARES else f"{value:.4g}"
        said.append(f"best {SHARES.get(name, 'validation loss')} {shown} at step {step:,.0f}")
    return ": " + "; ".join(said)


def _drawing(curves: Sequence[Curve], width: float, log: bool, rate: bool, salt: str, label: str) -> str:
    """An SVG for the middle of a page; its letters are outlines, so that no text of others is in it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measured = [name for name in SHARES if any(name in curve.points for curve in curves)]
    panels = [4.0 if width > 6 else 3.0] + [1.7] * (bool(measured) + rate)
    file = io.BytesIO()
    settings = {"svg.hashsalt": salt, "font.size": 9, "text.color": INK, "axes.labelcolor": INK}
    settings |= {"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK, "axes.labelsize": 9}
    with _drawing_now, rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an axis without positive values
        figure = Figure(figsize=(width, sum(panels)), layout="constrained")
        axes = figure.subplots(len(panels), sharex=True, height_ratios=panels, squeeze=False)[:, 0]
        for place, curve in enumerate(curves):
            style = {"color": colour(place), "marker": MARKERS[place]}
            _draw_losses(axes[0], curve, style)
            for name in measured:
                if name in curve.points:
                    axes[1].plot(*_line(*curve.points[name]), **style, markersize=4.5, linewidth=1.2)
            if rate:
                axes[-1].plot(*_line(curve.steps, curve.rates), color=style["color"], linewidth=1.2)
        titles = ["loss"] + ([", ".join(SHARES[n] for n in measured)] if measured else []) + ["learning rate"] * rate
        _dress(axes, titles, log, narrow=width < 6)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue().decode()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    size = re.search(r'viewBox="[^"]*"', svg)[0]  # without width and height it takes the width that there is
    body = svg[svg.index(">", svg.index("<svg")) + 1 :].replace(INK, "currentColor").replace(FAINT, "currentColor")
    return f'<svg {size} role="img" aria-label="{label}" stroke-linejoin="round">{body}'


def _line(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn of a line: finite values, thinned."""
    finite = np.abs(values) < HIGHEST
    return thinned(steps[finite], values[finite])


def _draw_losses(axis, curve: Curve, style: dict) -> None:
    finite = np.abs(curve.losses) < HIGHEST
    few = finite.sum() < 20
    thin = {"linewidth": 1.4} if few else {"linewidth": 0.7, "alpha": 0.35}
    axis.plot(*_line(curve.steps, curve.losses), color=style["color"], **thin)
    if not few:
        line = thinned(curve.steps[finite], smoothed(curve.losses[finite]))
        axis.plot(*line, color=style["color"], linewidth=1.8)
    if "validation_loss" in curve.points:
        axis.plot(*_line(*curve.points["validation_loss"]), **style, markersize=4.5, linewidth=1, linestyle=":")


def _dress(axes, titles: Sequence[str], log: bool, narrow: bool) -> None:
    """Scales, ticks, titles and grid."""
    from matplotlib import ticker

    ticks = 4 if narrow else 6
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(color=FAINT, alpha=0.15, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.yaxis.set_major_locator(ticker.MaxNLocator(ticks))
        if title == "loss" and log:
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            marks = ticker.LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,))
            axis.yaxis.set_major_locator(marks if high / low > 20 else ticker.MaxNLocator(ticks))
            axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set_major_formatter(
            ticker.PercentFormatter(1, decimals=0) if title not in ("loss", "learning rate") else lambda v, _: f"{v:g}"
        )
    axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(ticks, integer=True))
    axes[-1].xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes[-1].set_xlabel("optimizer step")
