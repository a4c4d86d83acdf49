import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from prismatic.checkpoints.epoch import (
    STATE_FILE,
    latest_checkpoint,
    load_state,
    newest_state,
    save_model,
    save_state,
    trained_steps,
)
from prismatic.checkpoints.lock import LOCK, held, hold, releases
from prismatic.checkpoints.run_folder import finished_run, open_run
from prismatic.training.tracking import MetricsLog, read_metrics
from recipes.config.finetune import parse_finetune
from recipes.config.images import parse_align
from vision_backbones.files import clean_up, put_folder, read_json, write_json


class Saved:
    """Stands for a model or processor: writes one file, or fails after half of it."""

    def __init__(self, name, fails=False):
        self.name, self.fails = name, fails

    def save_pretrained(self, folder):
        (folder / self.name).write_text("half" if self.fails else "whole")
        if self.fails:
            raise OSError("disk full")


def test_a_failed_save_leaves_nothing_and_keeps_the_one_before(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    save_model(Saved("model"), Saved("processor"), checkpoints / "epoch-01")
    with pytest.raises(OSError, match="disk full"):
        save_model(Saved("model"), Saved("processor", fails=True), checkpoints / "epoch-02")
    assert latest_checkpoint(tmp_path) == checkpoints / "epoch-01"
    assert (checkpoints / "epoch-01" / "processor").read_text() == "whole"
    save_model(Saved("model"), Saved("processor"), checkpoints / "epoch-02")
    assert latest_checkpoint(tmp_path) == checkpoints / "epoch-02"
    assert not list(checkpoints.glob(".*")), "what the failed save left is gone"
    with pytest.raises(ValueError, match="exists already"):
        save_model(Saved("model"), Saved("processor"), checkpoints / "epoch-02")


def saved(folder, steps=None, **options):
    about = {"trained.json": {"step": steps}} if steps is not None else {}
    return save_model(Saved("model"), Saved("processor"), folder, metadata=about, **options)


def test_the_newest_checkpoint_is_that_after_the_most_steps(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    assert latest_checkpoint(tmp_path) is None
    (checkpoints / "step-00000009").mkdir(parents=True)
    for name in ("step-00000012.bak", "step-abc", "epoch-07 (copy)", "epoch-"):
        (checkpoints / name).mkdir()
    assert latest_checkpoint(tmp_path).name == "step-00000009"
    for epoch, steps in ((1, 5), (10, 50), (9, 45)):
        saved(checkpoints / f"epoch-{epoch:02d}", steps)
    os.utime(checkpoints / "epoch-10", (1e9, 1e9))  # copied without times, or a clock set back
    assert latest_checkpoint(tmp_path).name == "epoch-10" and trained_steps(checkpoints / "epoch-10") == 50
    (checkpoints / "step-00000050").mkdir()
    assert latest_checkpoint(tmp_path).name == "epoch-10", "of the same step, the model that others can read"
    (checkpoints / "step-00000052").mkdir()
    assert latest_checkpoint(tmp_path).name == "step-00000052"
    saved(checkpoints / "epoch-11")
    assert latest_checkpoint(tmp_path).name == "epoch-11" and trained_steps(checkpoints / "epoch-11") == math.inf
    (checkpoints / "epoch-11" / "trained.json").write_text('{"step"')
    with pytest.raises(ValueError, match=r"epoch-11/trained\.json cannot be read .*: restore it"):
        latest_checkpoint(tmp_path)


def test_what_a_run_left_is_not_removed_by_starting_again(tmp_path, capsys):
    accelerator = Accelerator(cpu=True)

    def opened(*more, **options):
        config = parse_finetune(["--run_root", str(tmp_path), "--run_id", "mine", *more])
        return open_run(config, accelerator, "name", ("keep_last",), **options)

    folder = opened()
    assert opened("--seed", "1") == folder, "nothing is there yet"
    saved(folder / "checkpoints" / "epoch-01", 5)
    with pytest.raises(ValueError, match="holds a model but no state to continue from: choose another --run_id"):
        opened("--seed", "1")
    (folder / "checkpoints" / "step-00000005").mkdir()
    with pytest.raises(ValueError, match=r"mine holds results, which --resume never .* another --run_id"):
        opened("--seed", "1", anew=True)
    with pytest.raises(ValueError, match=r"mine was started with other settings \(--seed was 1, is 2\): use those, or"):
        opened("--seed", "2")
    assert opened("--seed", "1", "--keep_last", "7") == folder and "--keep_last 7 (was 2)" in capsys.readouterr().out
    assert latest_checkpoint(folder).name == "epoch-01" and finished_run(folder, accelerator) is None
    write_json(folder / "summary.json", {"loss_last": 1.0})
    assert opened("--seed", "1") == folder and finished_run(folder, accelerator) == {"loss_last": 1.0}
    assert "mine is already finished" in capsys.readouterr().out
    (folder / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"mine/config\.yaml cannot be read"):
        opened("--seed", "1")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp"])
def test_a_run_stays_in_its_root(tmp_path, name):
    config = parse_finetune(["--run_root", str(tmp_path / "runs")])
    config.run_id = name
    with pytest.raises(ValueError, match="expected the name of a folder, without its path"):
        open_run(config, Accelerator(cpu=True), "name")
    assert not list(tmp_path.iterdir())


HOLD = (
    "import sys; from prismatic.checkpoints.lock import hold; from pathlib import Path; hold(Path(sys.argv[1]), 'wait')"
)


def held_by_another(folder):
    done = subprocess.run([sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True)
    return done.stderr.splitlines()[-1] if done.returncode else ""


def test_a_folder_to_write_is_made_with_those_above_it(tmp_path):
    releases(hold)(tmp_path / "runs" / "of-mine" / "first", "wait")
    assert (tmp_path / "runs" / "of-mine" / "first").is_dir()


def test_a_folder_has_one_writer(tmp_path):
    @releases
    def main():
        hold(tmp_path, "wait")
        hold(tmp_path, "wait")  # once more, by itself
        releases(hold)(tmp_path, "wait")  # does not free what it did not take
        return held_by_another(tmp_path)

    assert main().startswith(f"ValueError: {tmp_path} is in use by process {os.getpid()} on ")
    assert main().endswith(": wait") and held_by_another(tmp_path) == "", "it ends with its process"
    assert main() != ""


def test_whether_a_folder_has_a_writer_is_known_without_stopping_one(tmp_path):
    assert not held(tmp_path) and not (tmp_path / LOCK).exists()
    holding = HOLD + "; print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", holding, str(tmp_path)], **pipes) as other:
        other.stdout.readline()
        assert held(tmp_path) and held(tmp_path / ".." / tmp_path.name)
        other.communicate()
    assert (tmp_path / LOCK).exists() and not held(tmp_path)

    @releases
    def main():
        hold(tmp_path, "wait")
        assert held(tmp_path)
        return held_by_another(tmp_path)

    assert "is in use by process" in main(), "asking gave the lock away"
    assert not held(tmp_path)


def test_folders_are_put_in_place_whole(tmp_path):
    def made(name, text):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
        return tmp_path / name

    folder = tmp_path / "last"
    put_folder(made("one", "1"), folder)
    put_folder(made("two", "2"), folder)
    put_folder(made("three", "3"), folder, tmp_path / "before")
    assert [(tmp_path / name / "file").read_text() for name in ("last", "before")] == ["3", "2"]
    folder.rename(tmp_path / ".last.replaced")  # killed between two renames
    made(".new.unfinished", "half")
    clean_up(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "last"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"a"', "[" * 100_000, "\udcff"])
def test_a_torn_file_is_named(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"file\.json cannot be read \(.{1,200}\): bring it back$"):
        read_json(path, "bring it back", "step")


def small_model(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01 * (seed + 1))


def take_steps(model, optimizer, inputs):
    for batch in inputs:
        model(batch).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [value.clone() for value in model.state_dict().values()]


def test_a_stored_state_goes_on_bitwise(tmp_path):
    inputs = torch.randn(6, 5, 3)
    model, optimizer = small_model(0)
    expected = take_steps(model, optimizer, inputs)
    model, optimizer = small_model(0)
    take_steps(model, optimizer, inputs[:3])
    save_state(tmp_path, {"model": model}, optimizer, {"steps": 3, "best": None})
    assert sorted(path.name for path in newest_state(tmp_path).iterdir()) == ["manifest.json", STATE_FILE]

    other, its_optimizer = small_model(1)
    its_optimizer.param_groups[0]["lr"] = 0.01  # the rate is the run's to set, at every step
    assert load_state(newest_state(tmp_path), {"model": other}, its_optimizer) == {"steps": 3, "best": None}
    found = take_steps(other, its_optimizer, inputs[3:])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    model, optimizer = small_model(0)
    save_state(tmp_path, {"model": model}, optimizer, {})
    with pytest.raises(ValueError, match="belongs to a different model"):
        load_state(newest_state(tmp_path), {"model": torch.nn.Linear(3, 4)}, optimizer)


def flip(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


def test_a_damaged_state_is_passed_over_and_never_loaded(tmp_path):
    model, optimizer = small_model(0)
    assert newest_state(tmp_path) is None
    for steps in (1, 2, 3):
        save_state(tmp_path, {"model": model}, optimizer, {"steps": steps})
    said, last, previous = [], *(tmp_path / "checkpoints" / name for name in ("last", "previous"))
    assert newest_state(tmp_path, said.append) == last and not said
    flip(last / STATE_FILE)
    assert newest_state(tmp_path, said.append) == previous and "SHA-256 differs); skipping it" in said[0]
    assert load_state(previous, {"model": model}, optimizer) == {"steps": 2}
    shutil.rmtree(last)  # killed between two renames
    assert newest_state(tmp_path) == previous
    (previous / STATE_FILE).write_bytes((previous / STATE_FILE).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"previous is damaged: .* no other to resume from: choose another --run_id"):
        newest_state(tmp_path)


def test_a_failed_state_keeps_the_one_before(tmp_path, monkeypatch):
    model, optimizer = small_model(0)
    save_state(tmp_path, {"model": model}, optimizer, {"steps": 1})

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, {"model": model}, optimizer, {"steps": 2})
    assert load_state(newest_state(tmp_path), {"model": model}, optimizer) == {"steps": 1}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last"]


def test_a_run_continues_from_its_state_and_with_its_settings_alone(tmp_path):
    accelerator = Accelerator(cpu=True)

    def opened(*arguments):
        config = parse_align(["--run_root", str(tmp_path), "--run_id", "mine", *arguments])
        return open_run(config, accelerator, "name", may_change=("data.workers",))

    folder = opened()
    opened("--seed", "1")  # it stored nothing to continue from
    save_state(folder, {}, small_model(0)[1], {})
    assert opened("--seed", "1", "--data.workers", "7") == folder and newest_state(folder)
    with pytest.raises(ValueError, match=r"\(--seed was 1, is 0\): use those, or another --run_id"):
        opened()


def test_metrics_that_cannot_be_rewritten_stay(tmp_path, monkeypatch):
    """At a restart, which keeps the rows of the steps that it does not take again."""
    accelerator, config = Accelerator(cpu=True), parse_finetune([])
    log = MetricsLog(accelerator, config, tmp_path)
    for step in (1, 2, 3):
        log({"step": step, "loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_text()

    def full(descriptor):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "fsync", full)
        MetricsLog(accelerator, config, tmp_path, done_steps=2)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    MetricsLog(accelerator, config, tmp_path, done_steps=2)({"step": 3, "loss": 2.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0)]
