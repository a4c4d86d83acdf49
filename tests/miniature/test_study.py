"""The study: its plan, how stages are run and cached, statistics, and the whole chain at a tiny size."""

import inspect
import json
import math
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
from recipes.reproduce import plan, report, run
from recipes.reproduce.__main__ import main
from recipes.reproduce.costs import evaluation_flops
from recipes.reproduce.findings import collect, constant_score, paired, spread, too_wide, with_holm
from recipes.reproduce.plan import ABLATIONS, CELLS, CLAIM, COMPARISONS, LABELS, TASKS, WIDEST, Stage, Study
from recipes.reproduce.seeds import record, record_path
from recipes.reproduce.words import DECIDED, in_words

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


def test_holms_method():
    """Against its definition: the smallest p-value times the number of comparisons, the next times one fewer, ..."""
    rows = with_holm([{"p": p} for p in (0.04, 0.01, None, 0.03)], planned=5)
    assert [row["holm"] for row in rows] == pytest.approx([0.12, 0.05, None, 0.12])
    assert with_holm([{"p": 0.5}, {"p": 0.4}], planned=2) == [{"p": 0.5, "holm": 0.8}, {"p": 0.4, "holm": 0.8}]
    assert with_holm([{"p": 0.7}], planned=2)[0]["holm"] == 1.0


def test_cells_and_comparisons_are_those_of_the_plan_that_was_written_before():
    told = (ROOT / "docs" / "results" / "plan.md").read_text()
    cells, read = {}, {"pretrained-decoder": "last", "transformer": "second-to-last"}  # where it is no choice
    for code, backbone, block, projector in re.findall(r"^\| ([OA].) \| (\w+) \| ([^|]+) \| ([\w-]+)", told, re.M):
        assert block == read.get(projector, block)
        block = f"@{block}" if projector == "gelu-mlp" else ""
        cells[code] = f"{backbone}{block}, {projector}"
    assert sorted(cells.values()) == sorted(CELLS) and len(cells) == 8
    pairs = re.findall(r"^\d\. ([OA].) - ([OA].)[:;]", told, re.M)
    assert tuple((cells[one], cells[other]) for one, other in pairs) == COMPARISONS
    for cell, (backbone, projector) in CELLS.items():
        assert cell == f"{backbone}, {projector}"
    told = " ".join(told.split())
    assert CLAIM == COMPARISONS[:2] and "only if 1 and 2 are both decided" in told
    assert (
        f"wider than {WIDEST} in all" in told
        and f"Holm's method over the five primary comparisons at {DECIDED}" in told
    )
    benchmarks = re.search(r"six benchmarks: (.*?) as before, and (\S+)-like pairs", told)
    named = benchmarks[1].replace(",", "").replace(" and ", " ").split()
    assert [*named, f"{benchmarks[2]}+llava"] == list(TASKS)
    config = ReproduceConfig()
    assert (config.seeds, config.more_seeds, config.ablation_seeds, config.eval_scenes) == (5, 2, 3, 200)
    assert "**Seeds**: five. Two more are added" in told and "three seeds" in told and "200 scenes each" in told


def made_up_seed(number: int, scores: dict[str, float]) -> dict:
    """The record of a seed whose cells have these scores on every benchmark, the others 0.5."""
    scores = dict.fromkeys(CELLS, 0.5) | scores
    return {
        "seed": number,
        "own": number > 0,
        "image_level": {"recall": 0.9, "precision": 0.9},
        "probes": {h: {k: {"original": 0.2, "aligned": 0.4 + 0.01 * number} for k in LABELS} for h in plan.HEADS},
        "ablations": {},
        "scores": {task: scores for task in TASKS},
        "questions": dict.fromkeys(TASKS, 100),
        "majority": dict.fromkeys(TASKS, 0.3),
        "chance": dict.fromkeys(TASKS, 0.25),
        "losses": dict.fromkeys(CELLS, 0.4),
        "stages": [
            {
                "name": f"seed-{number}/align",
                "kind": "align",
                "folder": "seed-align-01234567",
                "flops": 1e12,
                "command": "python -m recipes.align",
                "processor_seconds": 60.0,
                "commit": f"{'ab' * 20}-dirty",
                "versions": {"torch": f"2.{number}"},
            }
        ],
    }


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return replace(ReproduceConfig(), eval_scenes=8)


def test_comparisons_are_of_the_mean_score_and_decide_whether_seeds_are_added(few_scenes):
    a1, o1, o2 = "aligned@last, gelu-mlp", "original@last, gelu-mlp", BASE
    gains = (0.10, 0.12, 0.11, 0.13, 0.12)
    seeds = [made_up_seed(n, {a1: 0.5 + gain, o1: 0.3}) for n, gain in enumerate(gains)]
    found = collect(few_scenes, seeds)
    compared = {(row["cell"], row["other"]): row for row in found["comparisons"]}
    expected = paired([0.5] * 5, [0.5 + gain for gain in gains])
    assert compared[a1, o2]["mean"] == pytest.approx(0.116) and compared[a1, o2]["p"] == pytest.approx(expected["p"])
    # Two of five comparisons differ at all: the smaller p-value counts five times, the other four times.
    smaller = paired([0.3] * 5, [0.5 + gain for gain in gains])["p"]
    assert [compared[a1, o]["holm"] for o in (o2, o1)] == pytest.approx([4 * expected["p"], 5 * smaller])
    assert compared["aligned, truncated", "original, truncated"]["holm"] is None
    assert len(found["by_benchmark"]) == 5 * len(TASKS) and not too_wide(found)
    said = in_words(found)
    assert f"it is higher for “{a1}” against “{o2}” (+0.116)" in said
    assert "The claim that alignment helps the VLM with gelu-mlp is made" in said

    seeds[4]["scores"] = {task: seeds[4]["scores"][task] | {a1: 0.2} for task in TASKS}
    found = collect(few_scenes, seeds)
    said = in_words(found)
    assert too_wide(found) and f"is not made; not decided in its favour: “{a1}” against “{o2}”" in said
    one = collect(few_scenes, seeds[:1])
    said = in_words(one)
    assert not too_wide(one) and "This is one seed" in said and "clearly" not in said and "decided" not in said
    assert "from 0.200 to 0.400 (linear head)" in said and "claim" not in said


def test_answers_without_looking_are_the_best_of_chance_prior_and_majority(few_scenes):
    found = collect(few_scenes, [made_up_seed(0, {BASE: 0.28}), made_up_seed(1, {BASE: 0.28})])
    found["lines"] = {task: {"majority": None, "prior": 0.0, "chance": 0.25} for task in TASKS}
    assert f"On all 6 benchmarks all {len(CELLS)} VLMs score above" in in_words(found)
    found["lines"]["vsr"]["majority"] = 0.3
    assert "8 of 8 VLMs on refcoco, " in in_words(found) and "7 of 8 VLMs on vsr" in in_words(found)


def test_the_record_of_a_seed_spares_its_stages(tmp_path):
    config = replace(ReproduceConfig(), run_root=str(tmp_path))
    study = Study(config, range(2))
    assert record(study, 0) is None
    record_path(study, 1).write_text(json.dumps(made_up_seed(1, {})))
    assert record(Study(config, range(1, 2)), 1) == made_up_seed(1, {}), "whatever other seeds are planned"
    changed = Study(replace(config, probe_scenes=600), range(2))
    assert record(changed, 1) is None, "other settings, another record"


@pytest.mark.parametrize("torn", ["", '{"seed": 2', '{"seed": 2}'])
def test_a_torn_record_is_named(tmp_path, torn):
    study = Study(replace(ReproduceConfig(), run_root=str(tmp_path)), range(1))
    path = record_path(study, 0)
    path.write_text(torn)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read .*: delete it, or copy it again"):
        record(study, 0)


@pytest.mark.parametrize(("spread_of_gains", "more", "seeds"), [(0.2, 2, 7), (0.2, 0, 5), (0.001, 2, 5)])
def test_seeds_are_added_where_an_interval_is_wide(
    tmp_path, monkeypatch, spread_of_gains, more, seeds, few_scenes, capsys
):
    """All seeds have records, so that nothing is run."""
    monkeypatch.setattr(run, "start", None)
    config = replace(few_scenes, run_root=str(tmp_path / "stages"), out=str(tmp_path / "out"), more_seeds=more)
    study = Study(config, range(7))
    (tmp_path / "stages").mkdir()
    made = [made_up_seed(n, {"aligned@last, gelu-mlp": 0.5 + spread_of_gains * (n % 2)}) for n in range(7)]
    for one in made:
        record_path(study, one["seed"]).write_text(json.dumps(one))
    found = main(config)
    assert [one["seed"] for one in found["seeds"]] == list(range(seeds))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["seeds"] == made[:seeds]
    told = " ".join((tmp_path / "out" / "miniature.md").read_text().split())
    assert "commit abababab-dirty and torch 2.0, torch 2.1," in told
    assert f"{seeds} seeds{', 2 of them added because' if seeds == 7 else ';'}" in told
    assert ("more if an interval" in capsys.readouterr().out) == bool(more)


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


def test_the_shipped_report_is_what_its_results_give(tmp_path):
    results = ROOT / "docs" / "results"
    shipped = json.loads((results / "results.json").read_text())
    again = collect(ReproduceConfig(**shipped["settings"]), shipped["seeds"])
    assert json.loads(json.dumps(again)) == shipped, "statistics are those of the seeds' records"
    report.write(tmp_path, shipped)
    for name in ("miniature.md", "results.json"):
        assert (tmp_path / name).read_text() == (results / name).read_text()
    assert "<li>" not in (tmp_path / "report.html").read_text()


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
