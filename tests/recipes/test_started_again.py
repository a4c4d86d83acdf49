"""Runs that are stopped, killed, started again or twice: nothing is lost, and nobody trains on what is not finite."""

import json
import os
import resource
import signal

import forked
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from image_runs import run_align, same, state
from safetensors import SafetensorError
from safetensors.torch import load_file

from eval import evaluation, runner
from prismatic.training import epoch_models, loop
from recipes import evaluate
from recipes.config.evaluate import parse_evaluate
from recipes.config.finetune import parse_finetune
from recipes.finetune import main

SMALL = ["--data.annotations", "miniature:16", "--data.workers", "0", "--global_batch_size", "8",
         "--per_device_batch_size", "4", "--data.held_out_limit", "2", "--epochs", "1",
         "--eval_tasks", "vsr", "--eval_root", "miniature:8"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick")


def run(root, id, *arguments):
    return main(parse_finetune([*SMALL, "--run_root", str(root), "--run_id", id, *arguments]))


def written(path):
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def interrupts(patch, owner, name, error):
    def stop(*args, **options):
        raise error

    patch.setattr(owner, name, stop)


@pytest.mark.slow
def test_a_finetune_killed_in_its_evaluation_only_evaluates(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupts(patch, runner, "run_job", KeyboardInterrupt())
        run(tmp_path, "r")
    checkpoints = tmp_path / "r" / "checkpoints"
    assert {p.name for p in checkpoints.glob("[!.]*")} == {"epoch-01", "latest", "step-00000002"}
    before = {path: written(path) for path in checkpoints.rglob("*") if path.is_file()}
    (checkpoints / "step-00000002.bak").mkdir()
    with monkeypatch.context() as patch:
        interrupts(patch, torch.optim.AdamW, "step", AssertionError("it trains again"))
        summary = run(tmp_path, "r")
    assert 0 <= summary["vsr"] <= 1 and summary["steps"] == 2
    assert all(written(path) == stat for path, stat in before.items())
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]

    with monkeypatch.context() as patch:  # another benchmark is all that is missing
        interrupts(patch, torch.optim.AdamW, "step", AssertionError("it trains again"))
        more = run(tmp_path, "r", "--eval_tasks", "vsr,tallyqa")
    assert {"vsr", "tallyqa"} <= more.keys() and more["vsr"] == summary["vsr"]


def test_a_run_at_work_is_left_alone(tmp_path):
    """The first one is stopped in the middle, and resumes."""
    command = ["recipes/finetune.py", *SMALL, "--run_root", tmp_path, "--run_id", "r", "--eval_tasks", "[]"]
    first = forked.Process([*command, "--max_steps", "2"])
    while not (tmp_path / "r" / "config.yaml").exists():
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    second = forked.run([*command, "--seed", "8"])
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1 and f"r is in use by process {first.pid} on " in second.stderr.splitlines()[-1]
    assert first.wait(120) == 0
    assert "seed: 7" in (tmp_path / "r" / "config.yaml").read_text()


def test_other_texts_or_another_template_are_other_data(tmp_path, monkeypatch):
    from prismatic.data.conversation_dataset import open_data

    config = parse_finetune([*SMALL])
    source, _ = open_data(config.data)
    rows = [dict(source[index]) for index in range(len(source))]
    path = tmp_path / "rows.json"

    def write(changed):
        path.write_text(json.dumps([{k: v for k, v in row.items() if v is not None} for row in changed]))

    write(rows)
    data = ["--data.annotations", str(path), "--data.image_root", str(source.image_root), "--eval_tasks", "[]"]
    run(tmp_path, "r", *data, "--data.held_out", "null", "--epochs", "2", "--max_steps", "1")
    (tmp_path / "r" / "summary.json").unlink()
    rows[0]["conversations"] = [*rows[0]["conversations"][:-1], {"from": "gpt", "value": "another answer"}]
    write(rows)
    with pytest.raises(ValueError, match=r"was trained on other data \(other annotations now\): restore that data, or"):
        run(tmp_path, "r", *data, "--data.held_out", "null", "--epochs", "2", "--max_steps", "1")


@pytest.mark.slow
def test_rows_without_images_train_a_projector_alone(tmp_path):
    """With a step of text-only rows, in which nothing can be learned and nothing breaks."""
    arguments = ["--stage", "align", "--data.sampler", "split-modality", "--eval_tasks", "[]"]
    summary = run(tmp_path, "r", *arguments, "--data.annotations", "miniature:24", "--data.packing", "false")
    assert np.isfinite(summary["loss_last"])


def test_any_seed_trains(tmp_path):
    assert run(tmp_path, "r", "--seed", str(2**32 - 1), "--max_steps", "1", "--eval_tasks", "[]")["steps"] == 1


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved_and_the_advice_can_be_followed(tmp_path, monkeypatch):
    real, taken = torch.optim.AdamW.step, []

    def breaks(self, *args, **options):
        taken.append(real(self, *args, **options))
        if len(taken) == 2:
            torch.nn.init.constant_(self.param_groups[0]["params"][0], float("inf"))

    arguments = ["--data.annotations", "miniature:32", "--save_every_steps", "1", "--eval_tasks", "[]"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", breaks)
        with pytest.raises(FloatingPointError, match=r"after step 2: .* --run_id r and a lower --learning_rate"):
            run(tmp_path, "r", *arguments)
    found = {p.name for p in (tmp_path / "r" / "checkpoints").glob("step-*")}
    assert found == {"step-00000001"}
    assert run(tmp_path, "r", *arguments, "--learning_rate", "1e-6")["steps"] == 4
    weights = load_file(tmp_path / "r" / "checkpoints" / "epoch-01" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 2), pytest.param(signal.SIGINT, 3, marks=pytest.mark.slow)]
)
def test_an_alignment_stops_as_asked_and_goes_on_bit_for_bit(tmp_path, monkeypatch, number, step):
    """In the middle of an epoch, and at the end of one, which is validated before."""
    whole, before = run_align(tmp_path, "whole"), signal.getsignal(number)
    real, calls = loop.accumulate, []

    def asks(*args):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", asks)
        with pytest.raises(SystemExit) as end:
            run_align(tmp_path, "stopped")
    assert end.value.code == 0 and signal.getsignal(number) == before
    assert json.loads((tmp_path / "stopped" / "resumable.json").read_text())["step"] in (step, step + 1)
    assert run_align(tmp_path, "stopped")["validation_loss_last"] == whole["validation_loss_last"]
    assert same(state(tmp_path / "stopped"), state(tmp_path / "whole"))
    assert not (tmp_path / "stopped" / "resumable.json").exists()


@pytest.mark.slow
def test_a_disk_that_is_full_when_models_are_saved(tmp_path, monkeypatch, capsys):
    """A real failure to write: training continues, the last model is an error, and the same command then saves it."""
    arguments = ["--epochs", "2", "--eval_tasks", "[]", "--data.held_out_limit", "1"]
    run(tmp_path, "whole", *arguments)
    real, limits = epoch_models.save_model, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        try:
            return real(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch, pytest.raises((OSError, SafetensorError), match="File too large"):
        patch.setattr(epoch_models, "save_model", full)
        run(tmp_path, "full", *arguments)
    assert "error: the model of epoch 1 could not be written: " in "".join(capsys.readouterr())
    assert run(tmp_path, "full", *arguments)["steps"] == 4
    one, two = (load_file(tmp_path / r / "checkpoints" / "epoch-02" / "model.safetensors") for r in ("whole", "full"))
    assert same(one, two)


def test_a_report_that_cannot_be_written_costs_no_answers(tmp_path, monkeypatch):
    def evaluates():
        arguments = ["--model", "miniature", "--data_root", "miniature:8", "--tasks", "vsr", "--allow_partial", "true"]
        return evaluate.main(parse_evaluate([*arguments, "--out", str(tmp_path)]))["tasks"]["vsr"]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        interrupts(patch, evaluation, "write_report", OSError(28, "No space left on device"))
        evaluates()
    entry = evaluates()
    assert entry["answered_before"] == entry["examples"] and (tmp_path / "report.html").is_file()


def test_a_tracker_that_fails_is_told_and_ends_nothing(tmp_path, monkeypatch, capsys):
    arguments = ["--eval_tasks", "[]", "--data.held_out_limit", "1"]
    interrupts(monkeypatch, Accelerator, "log", ConnectionError("no network"))
    assert run(tmp_path, "r", *arguments)["steps"] == 2
    told = "a tracker failed (ConnectionError: no network); training continues"
    assert "".join(capsys.readouterr()).count(told) == 1
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize("what", ["run_root", "cache"])
def test_folders_that_cannot_be_made_are_one_line(what, tmp_path):
    nowhere = "/proc/nowhere"  # not even root can make it
    place = nowhere if what == "run_root" else str(tmp_path)
    environment = os.environ | ({"XDG_CACHE_HOME": nowhere, "HOME": nowhere} if what == "cache" else {})
    done = forked.run(["recipes/finetune.py", *SMALL, "--run_root", place], env=environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(lines) == 1 and nowhere in lines[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
