"""The page's tab of runs: what trained, trains and was evaluated below a folder, followed while it happens."""

from pathlib import Path
from typing import Any

import gradio as gr

from recipes.web.run_curves import MOST_CURVES, chart
from recipes.web.run_data import HEADER, MOST_PICTURES, SCORES, Runs, chosen, differences, row
from recipes.web.run_files import Unreadable
from recipes.web.run_html import STYLE, escaped, picture, report
from recipes.web.run_list import Run
from recipes.web.run_metrics import Curves

SECONDS = 2.5  # between looks at runs that are training
NONE = '<p class="runs-quiet">Choose a run.</p>'


def runs_tab(run_root: Path) -> None:
    """Fills a tab with the runs below a folder: a list, curves, scores, settings, pictures and reports.

    Args:
        run_root: The folder; nothing above it is read, and it may not be there yet.
    """
    view = _View(Path(run_root))
    with gr.Row(equal_height=True):
        found = gr.HTML(STYLE)
        again = gr.Button("Look again", size="sm", scale=0, min_width=140)
    table = gr.Dataframe(
        headers=list(HEADER), datatype="str", interactive=False, max_height=380, label="Runs, the newest first",
        column_widths=[240, 130, 185, 85, 330, 110, 175, 380], buttons=[],
    )  # fmt: skip
    names = gr.Dropdown(
        [], value=[], multiselect=True, max_choices=MOST_CURVES, label="Show these runs",
        info="Type a part of a name, or click on a row above; several are compared.",
    )  # fmt: skip
    scale = gr.Radio(["linear", "logarithmic"], value="linear", label="Axis of the loss")
    rate = gr.Checkbox(False, label="Draw the learning rate")
    curves = gr.HTML(NONE)
    scores = gr.Dataframe(
        headers=list(SCORES), datatype="str", interactive=False, label="Scores", visible=False, buttons=[]
    )
    reports = gr.Dropdown([], value=None, label="Report of an evaluation", visible=False)
    page = gr.HTML()
    settings_note = gr.HTML()
    settings = gr.Dataframe(
        datatype="str", interactive=False, label="Settings", visible=False, wrap=True, max_height=380, buttons=[]
    )
    pictures = gr.HTML()
    timer, seen = gr.Timer(SECONDS, active=False), gr.State({})

    inputs = [names, scale, rate, seen]
    outputs = [found, table, names, curves, scores, settings_note, settings, pictures, reports, timer, seen]
    private = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(None, view.first, None, outputs, **private)  # without triggers and inputs: when the page is opened
    gr.on(
        [names.change, scale.change, rate.change, again.click], view.look, inputs, outputs,
        trigger_mode="always_last", **private,
    )  # fmt: skip
    timer.tick(view.look, inputs, outputs, trigger_mode="once", **private)
    table.select(view.toggle, names, names, **private)
    reports.change(view.open, [names, reports], page, **private)


class _View:
    """What the tab does. What a browser sends is looked up in the list of runs, and never made into a path."""

    def __init__(self, run_root: Path):
        self.runs = Runs(run_root)
        self.curves = Curves(self.runs.files)

    def first(self) -> list:
        """What a page shows when it is opened: the run that changed last, if it has losses."""
        newest = next((run.name for run in self.runs.all() if run.loss is not None), None)
        return self.look([newest] if newest else [], "linear", False, {})

    def look(self, names: Any, scale: Any, rate: Any, seen: dict) -> list:
        """Everything that is not as the page has it, which `seen` tells; the rest is skipped, and does not flicker."""
        runs = self.runs.all()
        shown = chosen(runs, names)[:MOST_CURVES]
        stamp, metrics = self.runs.files.stamp, [m for run in shown for m in self.runs.metrics(run)]
        wanted = [run.name for run in shown]
        now = {
            "rows": [row(run) for run in runs],
            "names": (sorted(run.name for run in runs), None if names == wanted else wanted),
            "curves": (wanted, scale, rate, [(name, stamp(path)) for name, path in metrics]),
            "rest": (wanted, [self.runs.stamps(run) for run in shown]),
            "running": any(run.state == "running" for run in shown),
        }
        same = {key for key in now if key in seen and seen[key] == now[key]}
        made = {
            "rows": lambda: [self._found(runs), gr.update(value=[list(r) for r in now["rows"]])],
            "names": lambda: [_choices(runs, wanted, kept=seen and names == wanted)],
            "curves": lambda: [self._chart(metrics, scale, rate)],
            "rest": lambda: [*self._scores(shown), *self._settings(shown), self._pictures(shown), self._reports(shown)],
            "running": lambda: [gr.update(active=now["running"])],
        }
        counts = {"rows": 2, "names": 1, "curves": 1, "rest": 5, "running": 1}
        parts = [[gr.skip()] * counts[key] if key in same else make() for key, make in made.items()]
        return [*sum(parts, []), now]

    def toggle(self, names: Any, event: gr.SelectData) -> Any:
        """The chosen runs with that of the row that was clicked on, or without it if it was among them."""
        names = [run.name for run in chosen(self.runs.all(), names)]
        clicked = event.row_value[0] if isinstance(event.row_value, list) and event.row_value else None
        if clicked in names:
            return [name for name in names if name != clicked]
        return [run.name for run in chosen(self.runs.all(), [*names, clicked])][:MOST_CURVES]

    def open(self, names: Any, wanted: Any) -> str:
        """The report of that name, if a chosen run has one."""
        pages = {name: path for run in chosen(self.runs.all(), names) for name, path in self.runs.reports(run).items()}
        if not isinstance(wanted, str) or wanted not in pages:
            return ""
        try:
            content = self.runs.files.content(pages[wanted])
        except Unreadable as error:
            return f"<p>{escaped(str(error))}</p>"
        return report(content.decode("utf-8", "replace"), f"Report of {wanted}") if content else ""

    def _found(self, runs: list[Run]) -> str:
        root = escaped(str(self.runs.files.given))
        return f"{STYLE}<p>{len(runs):,} {'run' if len(runs) == 1 else 'runs'} in <code>{root}</code></p>"

    def _chart(self, metrics: list[tuple[str, Path]], scale: Any, rate: Any) -> str:
        if not metrics:
            return NONE
        read, wrong = [], []
        for name, path in metrics[: 2 * MOST_CURVES]:
            try:
                read.append((name, self.curves.read(path)))
            except Unreadable as error:
                wrong.append(f"<p>{escaped(f'{name}: {error}')}</p>")
        return chart(read, log=scale == "logarithmic", rate=bool(rate)) + "".join(wrong)

    def _scores(self, shown: list[Run]) -> list:
        rows = [list(scores) for run in shown for scores in self.runs.scores(run)]
        return [gr.update(value=rows, visible=bool(rows))]

    def _settings(self, shown: list[Run]) -> list:
        found = {run.name: settings for run in shown if (settings := self.runs.settings(run))}
        rows = [list(found_row) for found_row in differences(list(found.values()))]
        lacking = [run.name for run in shown if run.name not in found]
        note = f"<p>Same settings in {len(found)} runs.</p>" if len(found) > 1 and not rows else ""
        note += f"<p>No settings can be read of {escaped(', '.join(lacking))}.</p>" if lacking else ""
        label = "Settings that differ" if len(found) > 1 else "Settings (choose another run to see what differs)"
        value = {"headers": ["setting", *found], "data": rows}
        return [note, gr.update(value=value, visible=bool(rows), label=label)]

    def _pictures(self, shown: list[Run]) -> str:
        found = [drawn for run in shown for drawn in self.runs.pictures(run)]
        figures = []
        for caption, path in found[:MOST_PICTURES]:
            try:
                figures.append(picture(self.runs.files.content(path) or b"", caption))
            except Unreadable as error:
                figures.append(f"<p>{escaped(f'{caption}: {error}')}</p>")
        if len(found) > MOST_PICTURES:
            figures.append(f"<p>{len(found) - MOST_PICTURES} more pictures are in the folders of the runs.</p>")
        return f'<div class="runs-pictures">{"".join(figures)}</div>' if figures else ""

    def _reports(self, shown: list[Run]) -> dict:
        names = [name for run in shown for name in self.runs.reports(run)]
        return gr.update(choices=names, value=None, visible=bool(names))


def _choices(runs: list[Run], wanted: list[str], kept: Any) -> dict:
    """The runs to choose from; what the user has chosen stays as it is, unless a chosen run is gone."""
    return gr.update(choices=[run.name for run in runs], **({} if kept else {"value": wanted}))
