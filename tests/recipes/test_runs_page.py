"""The page's tab of runs: what it says of them, and that only what has changed is sent."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from image_runs import run_align
from run_folders import HOLD, LOSS, OLD, PNG, lines, made, recorded, rows

from prismatic.training import tracking
from recipes.config.evaluate import EvaluateConfig
from recipes.config.finetune import FinetuneConfig
from recipes.config.images import AlignConfig, ClassifyConfig, MimConfig
from recipes.config.probe import ProbeConfig
from recipes.web import run_files
from recipes.web.run_data import SCORES, Runs, differences
from recipes.web.run_list import JOBS
from recipes.web.run_metrics import Curves


@pytest.fixture
def root(tmp_path):
    """A folder of recorded runs."""
    return recorded(tmp_path / "runs")


def test_jobs_are_told_apart_by_their_settings():
    kinds = {"finetune": FinetuneConfig, "align": AlignConfig, "mim": MimConfig, "classify": ClassifyConfig}
    kinds |= {"probe": ProbeConfig}
    for name, kind in kinds.items():
        found = [job for job, settings in JOBS.items() if settings <= kind.__dataclass_fields__.keys()]
        assert found[0] == name, "the first that fits is taken"
    assert not [job for job, settings in JOBS.items() if settings <= EvaluateConfig.__dataclass_fields__.keys()]


def test_the_table_says_what_the_files_of_recorded_runs_say(root):
    found = rows(root)
    assert found.keys() == {"finetune", "align", "mim", "classify", "probe", "evaluate"}
    for name in ("finetune", "align", "mim", "classify"):
        losses = [line for line in lines(root / name / "metrics.jsonl") if "loss" in line]
        settings = yaml.safe_load((root / name / "config.yaml").read_text())
        assert settings["epochs"] == 2 and losses[2]["epoch"] == 0 and losses[3]["epoch"] == 1  # three steps an epoch
        assert found[name]["step"] == f"{losses[-1]['step']} of 6" and found[name]["job"] == name
        assert found[name]["loss"] == f"{losses[-1]['loss']:.4g}" and found[name]["state"] == "interrupted"
        assert found[name]["remarks"] == ""
    validation = [
        line["validation_loss"] for line in lines(root / "mim" / "metrics.jsonl") if "validation_loss" in line
    ]
    assert found["mim"]["score"] == f"validation loss {validation[-1]:.4g}"
    assert found["classify"]["score"] == "top-1 16.7%" and found["finetune"]["score"] == "-"
    outcome = json.loads((root / "probe" / "miniature" / "union" / "outcome.json").read_text())
    recall = outcome["best"]["scores"]["macro_recall"]
    assert found["probe"]["score"] == f"macro recall {recall:.1%} (miniature, union)"
    assert found["probe"]["step"] == "1 of 2 probes" and found["probe"]["job"] == "probe"
    last = lines(root / "probe" / "miniature-aligned" / "union" / "metrics.jsonl")
    assert found["probe"]["loss"] == f"{[line['loss'] for line in last if 'loss' in line][-1]:.4g}"
    assert found["evaluate"]["job"] == "evaluation" and found["evaluate"]["step"] == "1 of 3 tasks"
    assert found["evaluate"]["score"] == "vsr: accuracy 80.0%"


def test_scores_are_those_of_the_results(root):
    runs = Runs(root)
    known = {run.name: run for run in runs.all()}
    task = json.loads((root / "evaluate" / "results.json").read_text())["tasks"]["vsr"]
    low, high = task["intervals"]["accuracy"]
    (found,) = runs.scores(known["evaluate"])
    expected = (
        "evaluate",
        "vsr",
        "accuracy",
        f"{task['metrics']['accuracy']:.1%}",
        f"{low:.1%} .. {high:.1%}",
        "10",
        "50.0%",
    )
    assert found == expected and len(found) == len(SCORES)
    best = json.loads((root / "probe" / "miniature" / "union" / "outcome.json").read_text())["best"]
    (found,) = runs.scores(known["probe"])
    low, high = best["intervals"]["macro_recall"]
    assert found[1:5] == (
        "miniature, union",
        "macro recall",
        f"{best['scores']['macro_recall']:.1%}",
        f"{low:.1%} .. {high:.1%}",
    )
    (root / "finetune" / "eval").mkdir()
    shutil.copy(root / "evaluate" / "results.json", root / "finetune" / "eval")
    assert runs.scores(known["finetune"])[0][:3] == ("finetune", "vsr", "accuracy")
    assert rows(root)["finetune"]["score"] == "vsr: accuracy 80.0%"


@pytest.mark.usefixtures("quick")
def test_a_run_while_it_trains_and_when_it_has_ended(tmp_path, monkeypatch):
    seen, real = [], tracking.MetricsLog.__call__

    def spy(log, metrics):
        real(log, metrics)
        seen.append(rows(tmp_path)["mine"])

    monkeypatch.setattr(tracking.MetricsLog, "__call__", spy)
    summary = run_align(tmp_path, "mine", "--max_steps", "2", "--student", str(OLD / "tiny" / "vit.safetensors"))
    assert {found["state"] for found in seen} == {"running"} and seen[-1]["step"] == "2 of 2"
    runs = Runs(tmp_path)
    (run,) = runs.all()
    assert (run.job, run.state, run.step, run.remarks) == ("align", "finished", "2 of 2", ())
    assert run.loss == summary["loss_last"] and run.score == f"validation loss {summary['validation_loss_best']:.4g}"
    curve = Curves(runs.files).read(*[path for _, path in runs.metrics(run)])
    logged = lines(tmp_path / "mine" / "metrics.jsonl")
    assert curve.losses.tolist() == [line["loss"] for line in logged if "loss" in line]
    assert curve.rates.tolist() == [line["learning_rate"] for line in logged if "loss" in line]
    assert curve.points["validation_loss"][1].tolist() == [
        x["validation_loss"] for x in logged if "validation_loss" in x
    ]
    ((caption, path),) = runs.pictures(run)
    assert path.name == "patches.png" and "Patch features" in caption
    assert runs.settings(run)["masks.keep_ratio"] == 0.5


def test_a_run_of_another_process_is_running(root):
    path = root / "finetune" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert rows(root)["finetune"]["state"] == "running" and rows(root)["align"]["state"] == "interrupted"
        with (root / "finetune" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "lo')  # is being written
        assert rows(root)["finetune"]["remarks"] == ""
        other.communicate()
    assert rows(root)["finetune"]["state"] == "interrupted"
    assert rows(root)["finetune"]["remarks"] == "the last line of metrics.jsonl is cut off"


def test_runs_are_found_in_folders_of_a_study_and_not_elsewhere(tmp_path):
    made(tmp_path / "study" / "seed-0" / "align", metrics_jsonl=LOSS)
    (tmp_path / "study" / ".lock").touch()
    made(tmp_path / "begun-evaluation", _lock="").joinpath("vsr").mkdir()
    made(tmp_path / "logs" / "one", config_yaml="a: 1")
    made(tmp_path / ".hidden", config_yaml="a: 1")
    made(tmp_path / "pictures", a_png="")
    made(tmp_path / "one" / "checkpoints", config_yaml="a: 1")
    made(tmp_path / "compared", compare_json="{}", report_html="x")
    (tmp_path / "file").touch()
    found = rows(tmp_path)
    assert found.keys() == {"study/seed-0/align", "begun-evaluation", "compared"}
    assert found["begun-evaluation"]["job"] == "evaluation" and found["compared"]["job"] == "comparison"
    assert not rows(tmp_path / "absent") and not rows(tmp_path / "file")


def test_settings_that_differ():
    one, two = {"a": 1, "b.c": [1, 2], "run_id": "x", "d": None}, {"a": 1, "b.c": [1, 3], "run_id": "y", "e": "<b>"}
    assert differences([one, two]) == [
        ("b.c", "[1, 2]", "[1, 3]"),
        ("d", "null", "(not there)"),
        ("e", "(not there)", '"<b>"'),
    ]
    assert differences([one, one | {"run_id": "z"}]) == []
    assert differences([one]) == [("a", "1"), ("b.c", "[1, 2]"), ("d", "null")]
    assert differences([{"a": 1}, {"a": 1}, {"a": 1.5}]) == [("a", "1", "1", "1.5")]


def test_settings_of_recorded_runs_differ_where_their_files_do(root):
    runs = Runs(root)
    mim, align = (next(run for run in runs.all() if run.name == name) for name in ("mim", "align"))
    files = [yaml.safe_load((root / name / "config.yaml").read_text()) for name in ("mim", "align")]
    found = {name: values for name, *values in differences([runs.settings(mim), runs.settings(align)])}
    assert found["masks.null"] == ["false", "true"] and found["ema_decay"] == ["null", "0.6"]
    differing = {key for key in files[0].keys() | files[1].keys() if files[0].get(key, "-") != files[1].get(key, "-")}
    assert {name.split(".")[0] for name in found} == differing - {"run_id"}
    evaluated = next(run for run in runs.all() if run.name == "evaluate")
    assert runs.settings(evaluated)["data_root"] == "miniature:6"


class TestTab:
    """What the page is given; no server is started."""

    @pytest.fixture
    def view(self, root):
        pytest.importorskip("gradio")
        from recipes.web import runs

        made(
            root / "evaluate-copy",
            results_json=(root / "evaluate" / "results.json").read_text(),
            report_html="<p>hello",
        )
        (root / "finetune" / "samples.png").write_bytes(PNG + b"picture")
        return runs._View(root)

    NAMES = ("found", "table", "names", "curves", "scores", "report", "page", "note", "settings")

    def look(self, view, names, seen=None, scale="linear"):
        *outputs, now = view.look(names, scale, False, seen or {})
        order = ("found", "table", "names", "curves", "scores", "note", "settings", "pictures", "reports", "timer")
        return dict(zip(order, outputs, strict=True)), now

    def skipped(self, outputs):
        return {name for name, value in outputs.items() if value == {"__type__": "update"}}

    def test_a_tab_is_made(self, root):
        gr = pytest.importorskip("gradio")
        from recipes.web.runs import runs_tab

        with gr.Blocks() as page, gr.Tab("Runs"):
            runs_tab(root)
        calls = page.config["dependencies"]
        assert all(call["api_visibility"] == "private" for call in calls) and len(calls) == 5
        opened = [call for call in calls if call["targets"] and call["targets"][0][1] == "load"]
        assert len(opened) == 1 and not opened[0]["inputs"], "with inputs it would start itself anew for ever"

    def test_only_what_changed_is_sent(self, view, root):
        outputs, seen = self.look(view, ["finetune"])
        assert not self.skipped(outputs) and "step 5, loss 6.565" in outputs["curves"]
        again, seen = self.look(view, ["finetune"], seen)
        assert self.skipped(again) == again.keys()
        with (root / "finetune" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 6, "epoch": 1, "loss": 6.5}\n')
        later, seen = self.look(view, ["finetune"], seen)
        assert later.keys() - self.skipped(later) == {"found", "table", "curves"}
        logarithmic, seen = self.look(view, ["finetune"], seen, "logarithmic")
        assert logarithmic.keys() - self.skipped(logarithmic) == {"curves"}
        made(root / "new", metrics_jsonl=LOSS)
        new, seen = self.look(view, ["finetune"], seen, "logarithmic")
        assert new.keys() - self.skipped(new) == {"found", "table", "names"}
        assert "value" not in new["names"] and "new" in new["names"]["choices"], "the choice stays"
        shutil.rmtree(root / "new")
        gone, _ = self.look(view, ["finetune", "new"], seen, "logarithmic")
        assert gone["names"]["value"] == ["finetune"]

    def test_it_looks_again_only_while_a_chosen_run_trains(self, view, root):
        lock = root / "finetune" / ".lock"
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            other.stdout.readline()
            assert self.look(view, ["finetune"])[0]["timer"]["active"] is True
            assert self.look(view, ["align"])[0]["timer"]["active"] is False
            other.communicate()
        assert self.look(view, ["finetune"])[0]["timer"]["active"] is False

    def test_several_runs_are_compared(self, view):
        outputs, _ = self.look(view, ["evaluate", "evaluate-copy"])
        assert outputs["note"] == "<p>Same settings in 2 runs.</p>" and not outputs["settings"]["visible"]
        assert [scored[0] for scored in outputs["scores"]["value"]] == ["evaluate", "evaluate-copy"]
        assert outputs["reports"]["choices"] == ["evaluate-copy"]
        outputs, _ = self.look(view, ["mim", "align"])
        assert outputs["settings"]["value"]["headers"] == ["setting", "mim", "align"] and outputs["settings"]["visible"]
        assert ["ema_decay", "null", "0.6"] in outputs["settings"]["value"]["data"]
        outputs, _ = self.look(view, ["finetune"])
        assert outputs["pictures"].count("<img alt=") == 1 and "Held-out questions" in outputs["pictures"]

    def test_reports_are_opened_by_the_names_they_were_given(self, view, root, tmp_path):
        made(tmp_path / "secret", report_html="secret")
        assert "&lt;p&gt;hello" in view.open(["evaluate-copy"], "evaluate-copy")
        given = ["evaluate-copy"]
        refused = [(given, "../secret"), ([], "evaluate-copy"), ("../secret", "../secret"), (given, given)]
        for names, wanted in [*refused, (["finetune"], "finetune"), (None, None)]:
            assert view.open(names, wanted) == ""
        with (root / "evaluate-copy" / "report.html").open("ab") as file:
            file.truncate(run_files.MOST + 1)  # takes no place on the disk
        assert "too large" in view.open(["evaluate-copy"], "evaluate-copy")

    def test_a_click_on_a_row_chooses_its_run(self, view):
        def click(value):
            return type("Click", (), {"row_value": value})

        assert view.toggle(["mim"], click(["align", "finished"])) == ["mim", "align"]
        assert view.toggle(["mim", "align"], click(["mim"])) == ["align"]
        for value in (None, [], [None], [["mim"]], ["../x"], "mim"):
            assert view.toggle(["mim"], click(value)) == ["mim"]
