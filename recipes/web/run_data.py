"""What the page of runs shows of runs that a browser chose: settings, scores, pictures, reports. No gradio here."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report.charts import plain
from eval.report.tables import ends, percent
from recipes.web.run_files import PICTURES, REPORT, Folder, Unreadable, settings_of, settings_of_results
from recipes.web.run_list import Run, list_runs, probe_folders, results_of
from recipes.web.run_scores import scores_in

HEADER = ("run", "state", "step", "loss", "score", "job", "changed", "remarks")
SCORES = ("run", "of", "metric", "score", "95 % interval", "examples", "majority class")
MOST_PICTURES = 12
OWN = ("run_id", "run_root", "out")  # settings that tell runs apart and say nothing of them
CAPTIONS = {
    "samples.png": "Held-out questions with the answers before and after training: green is right, red is wrong",
    "patches.png": "Patch features of images before and after training",
    "comparison.png": "Local against global recall of the backbones, and recall by size",
    "classes.png": "Recall, precision and reliability of every class",
}
PROBED = "True and predicted classes of patches"


class Runs:
    """The runs below a folder, which need not be there yet.

    Names of runs that a browser sends are looked up in the list and are never made into paths.
    """

    def __init__(self, run_root: Path):
        self.files = Folder(run_root)

    def all(self) -> list[Run]:
        """All runs, the one that changed last first."""
        return list_runs(self.files)

    def settings(self, run: Run) -> dict[str, Any]:
        """Settings by dotted name, of an evaluation those in its results; none if they cannot be read."""
        found = self._read(run.folder / "config.yaml", settings_of)
        if not found:
            found = self._read(run.folder / "results.json", settings_of_results)
        return found

    def scores(self, run: Run) -> list[tuple[str, ...]]:
        """Rows under `SCORES`: results of its probes or its evaluation, or of one in its folder `eval`."""
        found = scores_in(results_of(self._read, run.folder, run.job))
        return [
            (run.name, s.of, s.metric, percent(s.value), ends(s.interval), _grouped(s.examples), percent(s.majority))
            for s in found
        ]

    def metrics(self, run: Run) -> list[tuple[str, Path]]:
        """Its `metrics.jsonl`, one a probe, each with a name for its curve."""
        if run.job != "probe":
            return [(run.name, run.folder / "metrics.jsonl")]
        return [(f"{run.name}: {_probe(path)}", path / "metrics.jsonl") for path in probe_folders(run.folder)]

    def pictures(self, run: Run) -> list[tuple[str, Path]]:
        """Pictures that it drew, each under its caption."""
        places = [(run.name, run.folder / name, CAPTIONS[name]) for name in PICTURES]
        for path in probe_folders(run.folder) if run.job == "probe" else ():
            of = f"{run.name}: {_probe(path)}"
            places += [(of, path / "samples.png", PROBED), (of, path / "classes.png", CAPTIONS["classes.png"])]
        return [(f"{caption} ({of})", path) for of, path, caption in places if self.files.stamp(path)]

    def reports(self, run: Run) -> dict[str, Path]:
        """Its pages on evaluations, by the name that the browser is given."""
        places = {run.name: run.folder / REPORT, f"{run.name}/eval": run.folder / "eval" / REPORT}
        return {name: path for name, path in places.items() if self.files.stamp(path)}

    def stamps(self, run: Run) -> list:
        """Differs once anything but metrics has changed."""
        documents = [run.folder / name for name in ("config.yaml", "results.json", "eval/results.json")]
        documents += [path / "outcome.json" for path in probe_folders(run.folder)] if run.job == "probe" else []
        seen = [*documents, *self.reports(run).values(), *(path for _, path in self.pictures(run))]
        return [(str(path), self.files.stamp(path)) for path in seen]

    def _read(self, path: Path, parse) -> dict[str, Any]:
        try:
            return self.files.read(path, parse) or {}
        except Unreadable:  # the list says so
            return {}


def chosen(runs: Sequence[Run], names: Any) -> list[Run]:
    """The runs of these names, which a browser sent: what is none of a run is left out."""
    wanted = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    known = {run.name: run for run in runs}
    return [known[name] for name in dict.fromkeys(wanted) if name in known]


def row(run: Run) -> tuple[str, ...]:
    """The run under `HEADER`."""
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
    loss = "-" if run.loss is None else f"{run.loss:.4g}"
    remarks = plain("; ".join(run.remarks), 300)
    return run.name, run.state, run.step, loss, plain(run.score, 120), run.job, changed, remarks


def differences(settings: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The settings that are not the same in all runs, each with its values; all settings, if there is one run."""
    names = dict.fromkeys(name for found in settings for name in found)
    rows = [(str(name), *(_told(found, name) for found in settings)) for name in names if name not in OWN]
    return sorted(row for row in rows if len(settings) == 1 or len(set(row[1:])) > 1)


def _told(settings: dict[str, Any], name: str) -> str:
    try:
        return plain(json.dumps(settings[name], default=str, skipkeys=True), 200) if name in settings else "(not there)"
    except ValueError:  # a whole number of thousands of digits
        return "(cannot be shown)"


def _probe(folder: Path) -> str:
    return f"{plain(folder.parent.name, 60)}, {plain(folder.name, 60)}"


def _grouped(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
