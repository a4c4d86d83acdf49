"""The study: its plan, how stages are run and cached, statistics, and the whole chain at a tiny size."""

import inspect
import json
import math
import os
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
from recipes.reproduce import plan, report, run
from recipes.reproduce.__main__ import main
from recipes.reproduce.costs import evaluation_flops
from recipes.reproduce.findings import against_controls, constant_score, paired, spread
from recipes.reproduce.plan import (
    ABLATIONS,
    BASE,
    CELLS,
    CONTROLS,
    TASKS,
    Stage,
    Study,
)
from recipes.reproduce.words import in_words

TINY = {
    "seeds": 1, "ablation_seeds": 0, "projectors": "gelu-mlp", "align_scenes": 64,
    "probe_scenes": 16, "finetune_rows": 32, "finetune_epochs": 1, "eval_scenes": 4,
}  # fmt: skip


def folders(**changed) -> dict[str, Path]:
    return {name: s.folder for name, s in Study(replace(ReproduceConfig(), **changed)).stages.items()}


def test_the_plan_holds_every_cell_of_every_seed_and_what_it_needs_before_it():
    study = Study(ReproduceConfig())
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


def test_a_changed_setting_changes_the_folders_of_what_depends_on_it_and_no_others(monkeypatch):
    before = folders()
    changed = {n for n, folder in folders(finetune_rows=100).items() if folder != before[n]}
    assert changed == {n for n in before if "finetune" in n or "evaluate" in n}
    changed = {n for n, folder in folders(align_scenes=100).items() if folder != before[n]}
    assert "seed-0/evaluate, aligned, gelu-mlp" in changed and f"seed-0/evaluate, {BASE}" not in changed
    assert not any(n.endswith("/pretrain") for n in changed)
    few = folders(seeds=3)
    assert all(before[n] == folder for n, folder in few.items())
    monkeypatch.setattr(plan, "BENCHMARKS_VERSION", 0)
    assert {n for n, folder in folders().items() if folder != before[n]} == {n for n in before if "evaluate" in n}


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


def test_intervals_and_tests_over_seeds():
    values, others = [0.5, 0.6, 0.55, 0.7, 0.65], [0.52, 0.66, 0.6, 0.71, 0.72]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    found = spread(values)
    assert found["mean"] == pytest.approx(mean)
    assert found["interval"] == pytest.approx([mean - 2.776445 * error, mean + 2.776445 * error], abs=1e-6)
    difference = [b - a for a, b in zip(values, others, strict=True)]
    mean = sum(difference) / 5
    t = mean / math.sqrt(sum((d - mean) ** 2 for d in difference) / 4 / 5)
    # Student's distribution with four degrees of freedom, in closed form.
    x = t / math.sqrt(4 + t * t)
    p = 1 - (1.5 * x - 0.5 * x**3)
    assert paired(values, others)["p"] == pytest.approx(p, rel=1e-6)
    assert spread([0.3]) == {"mean": 0.3, "interval": None, "values": [0.3]} and paired([0.3], [0.4])["p"] is None


def test_cells_are_compared_with_the_control_of_the_same_projector_size():
    mean_z = {BASE: [0, 0], "aligned, truncated": [0.5, 0.75], "original, truncated": [-1, -1.25]}
    (cell, more), *others = against_controls(mean_z).items()
    assert (cell, more["mean"], others) == ("aligned, truncated", 1.75, [])
    assert all(CELLS[c][0] == "aligned" and CELLS[control][0] == "original" for c, control in CONTROLS.items())


def test_a_constant_answer_scores_its_share(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jobs = {job.key: job for job in read_jobs(["vsr", "ai2d"], data_root("miniature:8"), allow_partial=True)}
    for key, answer in (("vsr", "True"), ("ai2d", "C")):
        examples = jobs[key].examples
        share = sum(e.answer == answer for e in examples) / len(examples)
        assert 0 < constant_score(jobs[key], answer) == pytest.approx(share)


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


def test_the_shipped_report_is_what_its_results_give(tmp_path):
    results = ROOT / "docs" / "results"
    report.write(tmp_path, json.loads((results / "results.json").read_text()))
    for name in ("miniature.md", "results.json"):
        assert (tmp_path / name).read_text() == (results / name).read_text()
    assert "<li>" not in (tmp_path / "report.html").read_text()


def difference(mean, low, high):
    return {"mean": mean, "interval": [low, high], "p": 0.5}


def test_findings_in_words():
    """Nothing is called clear whose interval holds 0, or that one seed alone tells."""
    found = json.loads((ROOT / "docs" / "results" / "results.json").read_text())
    said = in_words(found)
    assert "Alignment clearly raised the macro recall of probes of single patches: from 0.126 to 0.422" in said
    assert "did not clearly change the macro recall of probes of whole images" in said
    assert "all 6 VLMs score above the answer prior" in said and "not clearly different for “aligned, gelu-mlp”" in said
    assert "clearly higher for “aligned, pretrained-decoder” against “original, transformer” (+1.25)" in said
    found["probes"][0]["difference"] = difference(0.1, -0.1, 0.3)
    found["controls"] = {"aligned, truncated": difference(-1.0, -2.0, -0.5)}
    found["benchmarks"]["vsr"][BASE]["mean"] = 0.4
    said = in_words(found)
    assert (
        "Alignment changed, not with every head clearly or alike, the macro recall of probes of single patches" in said
    )
    assert "is clearly lower for “aligned, truncated” against “original, truncated” (-1.00)." in said
    assert "exceeded by 6 of 6 VLMs on refcoco, " in said and "5 of 6 VLMs on vsr and 6 of 6" in said

    differences = [row["difference"] for row in found["probes"]]
    differences += [z["difference"] for z in found["mean_z"].values() if z["difference"]] + [
        *found["controls"].values()
    ]
    for one in differences:
        one["interval"] = one["p"] = None
    found["image_level"] = found["image_level"][:1]
    said = in_words(found)
    assert "clearly raised" not in said and "clearly higher" not in said and "This is one seed" in said


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
        for cell in (BASE, "aligned, gelu-mlp"):
            (folder,) = (tmp_path / "stages").glob(f"seed-0-evaluate-{cell.replace(', ', '-')}-*/")
            told = json.loads((folder / "results.json").read_text())["tasks"][task]
            assert found["benchmarks"][task][cell]["values"] == [told["metrics"][told["main"]]]
    told, page = ((tmp_path / "out" / name).read_text() for name in ("miniature.md", "report.html"))
    for name in ("probes", "benchmarks", "radar"):
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        assert f"{name}.svg" in told
    shown = f"{found['benchmarks']['vsr'][BASE]['mean']:.3f}"
    assert f"| vsr | {shown} |" in told and f'<td class="text">{shown}</td>' in page
    assert all(s["command"] in told and s["seconds"] > 0 for s in found["stages"])
    assert all(s["flops"] > 0 for s in found["stages"])
