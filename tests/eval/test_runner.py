"""Evaluations that are interrupted, divided, short of memory or given damaged pictures lose and invent nothing."""

import json
import os
import re
import shutil
import signal
import time
from importlib.metadata import version
from pathlib import Path

import forked
import jsonlines
import pytest
import torch
from accelerate import PartialState

import prismatic
from eval import fingerprints as provenance
from eval import runner
from eval.engine import Answer
from eval.generate_engine import load_engine
from eval.report.runs import read_runs
from prismatic.miniature.benchmarks import write_benchmarks

TASKS = ["refcoco", "vsr", "tallyqa"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root of few scenes and a saved model with a random projector."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_benchmarks(folder / "data", 4)
    torch.manual_seed(0)
    model, processor = prismatic.build("miniature", "miniature", "gelu-mlp")
    model.save_pretrained(folder / "model"), processor.save_pretrained(folder / "model")
    return folder


def arguments(world, out, *more):
    return ["--model", str(world / "model"), "--tasks", ",".join(TASKS), "--data_root", str(world / "data"),
            "--allow_partial", "true", "--precision", "fp32", "--out", str(out), *more]  # fmt: skip


def evaluate(world, out, *more):
    from recipes.config.evaluate import parse_evaluate
    from recipes.evaluate import main

    return main(parse_evaluate(arguments(world, out, *more)))


def samples(out, task):
    with jsonlines.open(Path(out) / task / "samples.jsonl") as reader:
        return list(reader)


def same_answers(one, other, tasks=TASKS):
    for task in tasks:
        a, b = samples(one, task), samples(other, task)
        assert [r["id"] for r in a] == [r["id"] for r in b]
        for x, y in zip(a, b, strict=True):
            assert (x["output"], x["score"], x.get("error")) == (y["output"], y["score"], y.get("error"))
            if x.get("probabilities"):
                assert x["probabilities"] == pytest.approx(y["probabilities"], abs=1e-5)


@pytest.fixture(scope="module")
def whole(world):
    evaluate(world, world / "whole")
    return world / "whole"


@pytest.fixture(autouse=True)
def unreported(monkeypatch):
    """Only `whole` draws a report, which takes as long as the answers."""
    monkeypatch.setattr("eval.evaluation.write_report", lambda *args: None)


def test_every_example_is_answered_once_and_in_order(world, whole):
    results = json.loads((whole / "results.json").read_text())
    for key in TASKS:
        (job,) = runner.read_jobs([key], world / "data", allow_partial=True)
        records = samples(whole, key)
        assert [r["id"] for r in records] == [e.id for e in job.examples]
        entry = results["tasks"][key]
        assert entry["examples"] == len(records) and entry["errors"] == 0
        assert entry["metrics"]["accuracy"] == pytest.approx(sum(r["score"] for r in records) / len(records))
        assert not list((whole / key).glob("*.partial.jsonl"))
    assert results["versions"]["torch"] == version("torch") and len(results["model_fingerprint"]) == 16
    assert (whole / "report.html").is_file()


@pytest.mark.slow
def test_batches_and_strict_give_the_same_answers(world, whole, tmp_path):
    evaluate(world, tmp_path / "small", "--batch_size", "5")
    evaluate(world, tmp_path / "strict", "--strict", "true")
    same_answers(whole, tmp_path / "small")
    same_answers(whole, tmp_path / "strict")


@pytest.mark.slow
def test_two_processes_give_the_same_answers(world, whole, tmp_path):
    done = forked.run(["recipes/evaluate.py", *arguments(world, tmp_path / "two")], processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    same_answers(whole, tmp_path / "two")


def test_a_killed_evaluation_continues(world, whole, tmp_path):
    """Killed again and again, once with a torn line, and then by another number of processes."""
    out = tmp_path / "killed"
    command = ["recipes/evaluate.py", *arguments(world, out, "--batch_size", "2")]
    for _ in range(3):
        before = _stored(out)
        process = forked.Process(command)
        deadline = time.monotonic() + 120
        while _stored(out) < before + 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stored = _stored(out)
    assert stored >= 9 and not (out / "results.json").exists()
    partial = next(out.glob("*/*.partial.jsonl"))
    with partial.open("ab") as file:
        file.write(b'{"id": "torn')
    results = evaluate(world, out, "--batch_size", "7")
    assert results["tasks"]["refcoco"]["answered_before"] == stored
    same_answers(whole, out)


def _stored(out):
    return sum(file.read_bytes().count(b"\n") for file in out.glob("*/*.partial.jsonl"))


def test_finished_tasks_are_not_answered_again_unless_something_changed(world, tmp_path, monkeypatch):
    out, tasks = tmp_path / "again", ["vsr", "tallyqa"]
    few = ["--tasks", ",".join(tasks)]
    first = evaluate(world, out, *few)
    speed = first["tasks"]["vsr"]["questions_per_second"]
    again = evaluate(world, out, *few)
    assert [again["tasks"][key]["answered_before"] for key in tasks] == [
        again["tasks"][key]["examples"] for key in tasks
    ]
    assert again["tasks"]["vsr"]["questions_per_second"] == speed, "the speed of the run that did the work stays"
    assert evaluate(world, out, *few, "--overwrite", "true")["tasks"]["vsr"]["answered_before"] == 0
    assert evaluate(world, out, *few, "--strict", "true")["tasks"]["vsr"]["answered_before"] == 0

    (job,) = runner.read_jobs(["vsr"], world / "data", allow_partial=True)
    from dataclasses import replace

    prints = {provenance.job_fingerprint(job, "weights", {})}
    newer = replace(job, task=replace(job.task, version=2))
    worded = replace(job, task=replace(job.task, prompt=lambda e: e.question))
    fewer = replace(job, examples=job.examples[:-1])
    for other in (newer, worded, fewer):
        prints.add(provenance.job_fingerprint(other, "weights", {}))
    prints.add(provenance.job_fingerprint(job, "other weights", {}))
    assert len(prints) == 5
    model, _ = prismatic.load(world / "model")
    before = provenance.model_fingerprint(model)
    next(model.projector.parameters()).data[0] += 1e-3
    assert provenance.model_fingerprint(model) != before


class Scarce:
    """An engine on a device whose memory holds three questions at a time."""

    def __init__(self, engine, limit):
        self.engine, self.limit, self.refused = engine, limit, 0
        self.prepare, self.option_ids, self.batch_size = engine.prepare, engine.option_ids, engine.batch_size

    def answer(self, pictures, questions):
        if len(questions) > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.engine.answer(pictures, questions)


def run(world, engine, out, key="vsr"):
    (job,) = runner.read_jobs([key], world / "data", allow_partial=True)
    return runner.run_job(job, engine, PartialState(cpu=True), out, "f", box_frame="image")


def test_lack_of_memory_makes_batches_smaller(world, whole, tmp_path):
    engine = load_engine(str(world / "model"), dtype=torch.float32, device="cpu", batch_size=16)
    scarce = Scarce(engine, 3)
    run(world, scarce, tmp_path)
    assert 2 <= scarce.batch_size <= 3 and 1 <= scarce.refused <= 3
    same_answers(whole, tmp_path, ["vsr"])
    with pytest.raises(ValueError, match="not enough memory for one question"):
        run(world, Scarce(engine, 0), tmp_path / "none")


def test_a_damaged_picture_is_recorded_and_the_run_goes_on(world, whole, tmp_path):
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    damaged = samples(whole, "vsr")[0]["image"]
    (tmp_path / "data" / damaged).write_bytes(b"no picture")
    engine = load_engine(str(world / "model"), dtype=torch.float32, device="cpu", batch_size=16)
    entry = run(tmp_path, engine, tmp_path / "out")
    bad = [r for r in samples(tmp_path / "out", "vsr") if r["image"] == damaged]
    assert bad and all(f"{damaged}: unreadable (UnidentifiedImageError" in r["error"] for r in bad)
    assert all(r["score"] == 0 and r["output"] == "" for r in bad) and entry["errors"] == len(bad)
    good = {r["id"]: r["output"] for r in samples(whole, "vsr") if r["image"] != damaged}
    assert {r["id"]: r["output"] for r in samples(tmp_path / "out", "vsr") if r["image"] != damaged} == good


def test_what_is_wrong_is_said_before_the_model_is_loaded(world, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.evaluation.load_engine", lambda *a, **k: pytest.fail("the model was loaded"))
    out = tmp_path / "out"
    for more, message in (
        (["--tasks", "refcoc"], "unknown task 'refcoc': did you mean refcoco"),
        (["--tasks", "refcoco:vall"], "no split 'vall'"),
        (["--tasks", "vsr,vsr"], "named more than once: vsr"),
        (["--data_root", str(tmp_path / "nowhere")], "no folder .*nowhere"),
        (["--data_root", str(tmp_path)], "prepare refcoco"),
        (["--data_root", "miniature:1"], "no or too few scenes; expected miniature:COUNT"),
        (["--allow_partial", "false"], "not have the official number of examples"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(world, out, *more)
    assert not out.exists()


def test_errors_are_one_line(world, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    for more, message in (
        (["--model", "runs/no-such-run"], "error: no model called 'runs/no-such-run'"),
        (["--taks", "vsr"], "did you mean --tasks"),
    ):
        done = forked.run(["recipes/evaluate.py", *arguments(world, tmp_path / "out", *more)], env=environment)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


class Useless(Scarce):
    """An engine that can answer nothing after its first questions."""

    def answer(self, pictures, questions):
        self.limit -= len(questions)
        if self.limit < 0:
            return [Answer(error="no memory")] * len(questions)
        return self.engine.answer(pictures, questions)

    def __getattr__(self, name):
        return getattr(self.engine, name)


def test_errors_of_every_question_are_one_of_the_run(world, tmp_path):
    engine = load_engine(str(world / "model"), dtype=torch.float32, device="cpu", batch_size=4)
    with pytest.raises(ValueError, match="vsr: none of the first 6 questions could be answered: no memory"):
        run(world, Useless(engine, 0), tmp_path)
    assert not list(tmp_path.rglob("samples.jsonl"))
    entry = run(world, engine, tmp_path)
    assert entry["errors"] == 0 and entry["answered_before"] == 0, "what failed is tried again"


def test_too_many_errors_end_with_status_1_and_keep_the_scores(world, whole, tmp_path, monkeypatch):
    def some(*args, **options):
        return Useless(load_engine(*args, **options), 4)

    monkeypatch.setattr("eval.evaluation.load_engine", some)
    with pytest.raises(ValueError, match=r"\d+ of \d+ questions ended in errors .* --max_error_share 0"):
        evaluate(world, tmp_path, "--tasks", "vsr", "--batch_size", "4")
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0 < results["tasks"]["vsr"]["errors"] < results["tasks"]["vsr"]["examples"]
    evaluate(world, tmp_path, "--tasks", "vsr", "--batch_size", "4", "--max_error_share", "1")


def test_a_line_without_its_break_is_answered_again(world, whole, tmp_path):
    shutil.copytree(whole / "vsr", tmp_path / "vsr")
    lines = (tmp_path / "vsr" / "samples.jsonl").read_bytes().splitlines(True)
    (tmp_path / "vsr" / "samples.jsonl").unlink()
    (tmp_path / "vsr" / "rank-0.partial.jsonl").write_bytes(b"".join(lines[:4])[:-1])
    assert evaluate(world, tmp_path, "--tasks", "vsr")["tasks"]["vsr"]["answered_before"] == 3
    same_answers(whole, tmp_path, ["vsr"])


def test_samples_that_were_edited_are_named(world, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    path = tmp_path / "out" / "vsr" / "samples.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]

    def edited(change):
        lines = [dict(record) for record in records]
        change(lines[2])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError) as error:
            evaluate(world, tmp_path / "out", "--tasks", "vsr")
        with pytest.raises(ValueError, match="evaluate again|--overwrite"):
            read_runs([tmp_path / "out"])[0].records("vsr")
        return str(error.value)

    assert "samples.jsonl was changed after it was written (SHA-256 differs)" in edited(lambda r: r.update(output="x"))
    results = tmp_path / "out" / "results.json"
    results.write_text(re.sub(r'"samples": "\w+",', "", results.read_text()))  # of a version that kept no digest
    for name in ("id", "output", "answer"):
        assert "samples.jsonl: line 3 has no id, answer or output" in edited(lambda r, name=name: r.pop(name))


def test_pictures_templates_and_settings_are_part_of_a_fingerprint(world):
    engine = load_engine(str(world / "model"), dtype=torch.float32, device="cpu", batch_size=4)
    model, tokenizer = engine.model, engine.processor.tokenizer
    (job,) = runner.read_jobs(["vsr"], world / "data", allow_partial=True)

    def fingerprint():
        return provenance.job_fingerprint(job, "model", provenance.spoken(model, engine.processor))

    before, picture = fingerprint(), job.root / job.examples[0].image
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert fingerprint() == before, "how it was called last"
    content = picture.read_bytes()
    picture.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    assert fingerprint() != before
    picture.write_bytes(content)
    assert fingerprint() == before
    model.generation_config.repetition_penalty = 1.5
    assert fingerprint() != before
    model.generation_config.repetition_penalty = None
    tokenizer.chat_template += " "
    assert fingerprint() != before
