"""The study: its plan, how stages are run and cached, and the whole chain at a tiny size."""

import inspect
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import forked
import pytest
import torch
from golden_cases import ROOT

import prismatic
from eval.runner import data_root, read_jobs
from prismatic.checkpoints.lock import LOCK
from recipes.config.reproduce import ReproduceConfig, parse_reproduce
from recipes.reproduce import job as stage
from recipes.reproduce import plan, run
from recipes.reproduce.__main__ import main
from recipes.reproduce.costs import evaluation_flops
from recipes.reproduce.plan import ABLATIONS, CELLS, TASKS, Stage, Study

BASE = "original@second-to-last, gelu-mlp"
TINY = {
    "seeds": 1, "ablation_seeds": 0, "projectors": "gelu-mlp", "align_scenes": 64,
    "probe_scenes": 16, "finetune_rows": 32, "finetune_epochs": 1, "eval_scenes": 4,
}  # fmt: skip


def folders(**changed) -> dict[str, Path]:
    config = replace(ReproduceConfig(), **changed)
    return {name: s.folder for name, s in Study(config, range(config.seeds)).stages.items()}


def test_the_plan_holds_every_cell_of_every_seed_and_what_it_needs_before_it():
    study = Study(ReproduceConfig(), range(5))
    for seed in range(5):
        assert {f"seed-{seed}/evaluate, {cell}" for cell in CELLS} < set(study.stages)
        assert (f"seed-{seed}/pretrain" in study.stages) == (seed >= 1)
    assert {f"seed-0/probe, {ablation}, linear head" for ablation in ABLATIONS} < set(study.stages)
    seen = set()
    for name, planned in study.stages.items():
        assert {need.name for need in planned.needs} <= seen
        seen.add(name)
        mentioned = {s.name for s in study.stages.values() if any(str(s.folder) in v for _, v in planned.settings)}
        before = {need.name: need for need in planned.needs}
        assert mentioned <= set(before) | {earlier.name for need in before.values() for earlier in need.needs}


def test_a_changed_setting_changes_the_folders_of_what_depends_on_it_and_no_others(tmp_path, monkeypatch):
    before = folders()
    changed = {n for n, folder in folders(finetune_rows=100).items() if folder != before[n]}
    assert changed == {n for n in before if "finetune" in n or "evaluate" in n}
    changed = {n for n, folder in folders(align_scenes=100).items() if folder != before[n]}
    assert "seed-0/evaluate, aligned@last, gelu-mlp" in changed and f"seed-0/evaluate, {BASE}" not in changed
    assert not any(n.endswith("/pretrain") for n in changed)
    few = folders(seeds=3)
    assert all(before[n] == folder for n, folder in few.items())
    monkeypatch.setattr(plan, "BENCHMARKS_VERSION", 0)
    assert {n for n, folder in folders().items() if folder != before[n]} == {n for n in before if "evaluate" in n}
    monkeypatch.undo()
    monkeypatch.setattr(plan, "FINETUNE_PRESET", tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("learning_rate: 1e-4")
    changed = {n for n, folder in folders().items() if folder != before[n]}
    assert changed == {n for n in before if "finetune" in n or "evaluate" in n}
    monkeypatch.undo()
    elsewhere = folders(run_root=f"{tmp_path}/")
    assert {n: f.name for n, f in elsewhere.items()} == {n: f.name for n, f in before.items()}


def small_stage(folder: Path, name: str, needs=(), module="json.tool", settings=()) -> Stage:
    return Stage(name, "probe", module, settings, tuple(needs), folder / name, 1)


def forked_stage(one: Stage, cores: list[int]) -> forked.Process:
    """Starts a stage as `run.start` does."""
    one.folder.parent.mkdir(parents=True, exist_ok=True)
    command = ["-m", stage.__name__, str(one.folder), one.module, *one.arguments]
    log = open(run.log_path(one), "a+b")  # which the process keeps, to tell of it
    return forked.Process(command, stdout=log, stderr=subprocess.STDOUT)


def test_a_failed_stage_says_which_and_shows_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "start", forked_stage)
    failing = small_stage(tmp_path, "bad", module="recipes.probe", settings=(("backbone", "minature"),))
    with pytest.raises(ValueError, match=r"stage bad ended with 1(.|\n)*did you mean miniature(.|\n)*rerun"):
        run.run_all([failing], jobs=1)


def test_cores_are_dealt_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 5, 7})
    assert run.shares(2) == [[0, 3, 7], [2, 5]]
    assert run.shares(7) == [[0], [2], [3], [5], [7], [0], [2]]


def test_stages_beside_one_another_run_on_cores_of_their_own(tmp_path, monkeypatch):
    """They say which: `platform` prints nothing of it, so a module of ours does."""
    (tmp_path / "tells_cores.py").write_text(
        "import os; print('on', *sorted(os.sched_getaffinity(0)), 'of', os.getpid())"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    both = [small_stage(tmp_path, name, module="tells_cores") for name in ("one", "two")]
    run.run_all(both, jobs=2)
    told = [run.log_path(one).read_text().split("on ")[-1].split(" of ")[0].split() for one in both]
    cores = {str(core) for core in os.sched_getaffinity(0)}
    assert set(told[0]) | set(told[1]) == cores and (len(cores) == 1 or not set(told[0]) & set(told[1]))


@pytest.mark.slow
def test_operations_of_an_evaluation_are_those_of_weights_and_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counted = evaluation_flops(replace(small_stage(tmp_path, "e"), needs=(small_stage(Path(), "miniature"),)), 3)
    model, processor = prismatic.load("miniature", dtype=torch.float32)

    def weights(part):
        return sum(m.weight.numel() for m in part.modules() if isinstance(m, torch.nn.Linear))

    head = model.llm.get_output_embeddings().weight.numel()
    llm = weights(model.llm) - head
    expected = 0
    for job in read_jobs(TASKS, data_root("miniature:3"), allow_partial=True):
        images = len({example.image for example in job.examples})
        expected += 2 * images * 37 * (weights(model.vision_backbone) + weights(model.projector) + llm)
        texts = [job.task.prompt(example) for example in job.examples]
        expected += 2 * sum(len(processor.tokenizer(text)["input_ids"]) * llm + head for text in texts)
    assert expected < counted < 2 * expected  # beside these: attention, the prompt's frame, generated tokens


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--projectors", "gelu-mpl"], "choose from gelu-mlp"),
        (["--projectors", "truncated"], "lacks gelu-mlp"),
        (["--projectors", "[gelu-mlp,transformer]"], "has transformer alone: pretrained-decoder and transformer"),
        (["--seedz", "2"], "did you mean --seeds"),
    ],
)
def test_bad_settings(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_reproduce(argv)
    assert message in capsys.readouterr().err


def test_quick_is_a_preset_that_settings_change():
    config = parse_reproduce(["--quick", "--eval_scenes", "7"])
    assert (config.seeds, config.bundled_seeds, config.eval_scenes) == (1, 1, 7)


FORKED_STAGES = f"""
import runpy, subprocess, sys
import forked
from recipes.reproduce import job as stage
from recipes.reproduce import run
from recipes.reproduce.plan import Stage

{inspect.getsource(forked_stage)}
run.start = forked_stage
runpy.run_module("recipes.reproduce", run_name="__main__", alter_sys=True)
"""


class Running:
    """A study at a tiny size, its stages forked; test_docs.py starts them as they are for users."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT / "tests"),
        }  # fmt: skip
        settings = TINY | {"run_root": folder / "stages", "out": folder / "out"}
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self.command = ["-c", FORKED_STAGES, *flags]

    def ended(self):
        """Files of the stages that have ended, and when each was written."""
        return {path: path.stat().st_mtime_ns for path in (self.folder / "stages").glob(f"*/{stage.DONE}")}

    def kill_after(self, stages, kill=signal.SIGKILL):
        """Starts it, kills it once so many stages have ended, and gives those."""
        process, deadline = forked.Process(self.command, env=self.environment), time.monotonic() + 240
        while len(self.ended()) < stages and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1][-3000:]
            time.sleep(0.05)
        process.send_signal(kill)
        process.wait()
        return self.ended()


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path):
    study = Running(tmp_path)
    early = study.kill_after(1)
    later = study.kill_after(len(early) + 1, signal.SIGINT)  # which stops the stages at work, too
    assert early and early.items() < later.items() and not (tmp_path / "out").exists()
    for path in later:
        told = stage.read(path.parent)
        assert told["command"].startswith("python -m recipes.") and told["processor_seconds"] > 0


def test_a_study_at_work_is_left_alone(tmp_path):
    code = (
        f"import pathlib, time; from prismatic.checkpoints.lock import hold; hold(pathlib.Path({str(tmp_path)!r}), '')"
    )
    first, lock = forked.Process(["-c", f"{code}; time.sleep(60)"]), tmp_path / LOCK
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.02)
    with pytest.raises(ValueError, match=f"is in use by process {first.pid} .* choose another --run_root"):
        main(parse_reproduce(["--run_root", str(tmp_path)]))
    first.send_signal(signal.SIGKILL)
    first.wait()


@pytest.mark.slow
def test_a_killed_study_goes_on_and_reports(tmp_path):
    study = Running(tmp_path)
    early = study.kill_after(1)
    assert early and len(early) < 7 and not (tmp_path / "out").exists()

    command, environment = study.command, study.environment
    second = forked.run(command, env=environment, timeout=900)
    assert second.returncode == 0, second.stderr[-3000:]
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in early.items())
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["benchmarks"]) == set(TASKS)
    for task in TASKS:
        for cell in (BASE, "aligned@last, gelu-mlp"):
            plain = cell.replace(", ", "-").replace("@", "-")
            (folder,) = (tmp_path / "stages").glob(f"seed-0-evaluate-{plain}-*/")
            told = json.loads((folder / "results.json").read_text())["tasks"][task]
            assert found["benchmarks"][task][cell]["values"] == [told["metrics"][told["main"]]]
    told, page = ((tmp_path / "out" / name).read_text() for name in ("miniature.md", "report.html"))
    for name in ("comparisons", "probes", "benchmarks", "radar"):
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        assert f"{name}.svg" in told
    shown = f"{found['benchmarks']['vsr'][BASE]['mean']:.3f}"
    row = re.search(rf"^\| {BASE} \|(?: [\d.]+ \|){{3}} {shown} \|", told, re.M)
    assert row and TASKS[3] == "vsr" and f"<td>{shown}</td>" in page
    stages = found["seeds"][0]["stages"]
    assert all(s["command"] in told and s["seconds"] > 0 and s["flops"] > 0 for s in stages)
    (kept,) = (tmp_path / "stages").glob("seed-0-????????.json")
    assert json.loads(kept.read_text()) == found["seeds"][0]
