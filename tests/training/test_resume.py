"""Nothing is lost: kills, damaged files, full disks, and requests to stop."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import forked
import jsonlines
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from sharded_worker import model_of, train

from prismatic.checkpoints import step as state
from prismatic.checkpoints import writer as saving
from prismatic.training import optim

WORKER = Path(__file__).with_name("kill_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("least", "steps", "processes"),
    [(6, 24, 1), (50, 150, 1), (50, 150, 2)],
)
def test_kills_at_random_moments_change_nothing(least, steps, processes, tmp_path):
    """Also the data: a step that was taken again saw the same rows."""
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = forked.run([WORKER, tmp_path, processes, least, steps], env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])["kills"]
    assert kills >= least
    logs = {}
    for run in ("whole", "killed"):
        with jsonlines.open(tmp_path / run / "log.jsonl") as reader:
            logs[run] = list(reader.iter(type=dict, skip_invalid=True))
    assert [row["step"] for row in logs["whole"]] == list(range(1, steps + 1))
    expected = {row["step"]: row for row in logs["whole"]}
    assert least < 50 or len(logs["killed"]) > steps, "no step was ever taken again"
    assert all(row == expected[row["step"]] for row in logs["killed"])
    assert {row["step"] for row in logs["killed"]} == expected.keys()
    weights = load_file(tmp_path / "killed" / "weights.safetensors")
    for name, value in load_file(tmp_path / "whole" / "weights.safetensors").items():
        assert torch.equal(weights[name], value), name
    print(f"{kills} kills of {processes} processes, {len(logs['killed']) - steps} steps taken again")


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def run(tmp_path, accelerator):
    """A run with checkpoints of steps 2, 4 and 6."""
    train(accelerator, folder=tmp_path, save_at=2, until=6)
    return tmp_path


def fresh():
    model = model_of("finetune")
    return model, torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-2, fused=True)


def test_what_is_kept(tmp_path, accelerator):
    model, optimizer = fresh()
    (tmp_path / "checkpoints").mkdir()
    logged = []
    saves = saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=1, keep_last=2, keep_every=3,
                               metadata={"stage": "finetune"}, log=logged.append)  # fmt: skip
    for step in range(1, 9):
        saves.after_step(step)
    saves.close()
    assert [folder.name[-1] for folder in state.step_folders(tmp_path)] == ["8", "7", "6", "3"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000008\n"
    about = state.read_state(state.step_folders(tmp_path)[0])
    assert (about["step"], about["processes"], about["stage"]) == (8, 1, "finetune")
    assert torch.__version__.startswith(about["versions"]["torch"])
    assert [row["step"] for row in logged] == list(range(1, 9)) and all(row["checkpoint_seconds"] > 0 for row in logged)
    names = {path.suffix for path in (tmp_path / "checkpoints" / "step-00000008").iterdir()}
    assert names == {".safetensors", ".json"}, "no pickle"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": (lambda f: flip(next(f.glob("shard-*"))), "SHA-256 differs"),
    "a short file": (lambda f: os.truncate(next(f.glob("shard-*")), 1000), r"has 1,000 bytes of"),
    "a missing file": (lambda f: next(f.glob("rank-*")).unlink(), "rank-00000.json is missing"),
    "half a manifest": (lambda f: os.truncate(f / "manifest.json", 30), "manifest.json cannot be read"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json cannot be read"),
    "a manifest of something else": (lambda f: (f / "manifest.json").write_text("[1]"), "cannot be read"),
    "a file elsewhere": (
        lambda f: (f / "manifest.json").write_text('{"files": {"../x": {"bytes": 1, "sha256": ""}}}'), "is missing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, run, accelerator, capsys):
    do, message = DAMAGES[damage]
    do(state.step_folders(run)[0])
    assert saving.resume("auto", run, accelerator, *fresh()) == 4
    out = capsys.readouterr().out
    assert "step-00000006 is damaged: " in out and "; skipping it" in out
    import re

    assert re.search(message, out)


def test_when_all_are_damaged_or_none_is_there(run, accelerator, tmp_path_factory):
    for folder in state.step_folders(run):
        flip(next(folder.glob("shard-*")))
    with pytest.raises(ValueError, match="all of its checkpoints are damaged; --resume never starts over"):
        saving.resume("auto", run, accelerator, *fresh())
    assert saving.resume("never", run, accelerator, *fresh()) == 0
    empty = tmp_path_factory.mktemp("empty")
    assert saving.resume("auto", empty, accelerator, *fresh()) == 0
    with pytest.raises(ValueError, match="there is no step checkpoint"):
        saving.resume(str(empty), run, accelerator, *fresh())


def test_resuming_from_a_path(run, accelerator, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    assert saving.resume(str(run), other, accelerator, *fresh()) == 6
    assert saving.resume(str(run / "checkpoints" / "step-00000004"), other, accelerator, *fresh()) == 4


def test_a_checkpoint_of_another_model_is_refused(run, accelerator):
    model = model_of("align")
    optimizer = torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1))
    with pytest.raises(ValueError, match="belongs to a different model: .* on one side only"):
        saving.resume("auto", run, accelerator, model, optimizer)
    model, optimizer = fresh()
    head = model.llm.lm_head
    head.weight = torch.nn.Parameter(torch.zeros(head.weight.shape[0] + 1, head.weight.shape[1]))
    with pytest.raises(ValueError, match="belongs to a different model: .* for model.lm_head.weight"):
        saving.resume("auto", run, accelerator, model, optimizer)


def test_every_file_is_read_by_one_of_the_processes(run):
    folder = run / "checkpoints" / "step-00000006"
    changed = sorted(path for path in folder.iterdir() if path.name != state.MANIFEST)[0]
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert state.problem_with(folder).startswith(f"{changed.name} is not what was written")
        assert sum(state.problem_with(folder, part, 3) is not None for part in range(3)) == 1
    finally:
        changed.write_bytes(content)
    assert state.problem_with(folder) is None


def test_other_data_are_refused(tmp_path, accelerator):
    model, optimizer = fresh()
    (tmp_path / "checkpoints").mkdir()
    then = {"rows": 1000, "images": ["a", None, "c"]}
    saves = saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=1, metadata={"data": then})
    saves.after_step(1)
    saves.close()
    mended = {"rows": 1000, "images": ["a", "b", None], "new": 1}
    assert saving.resume("auto", tmp_path, accelerator, model, optimizer, data=mended) == 1
    other = {"rows": 999, "images": ["b", "b", "b"]}
    with pytest.raises(ValueError, match=r"on other data \(1,000 rows then, 999 now, other images now\)"):
        saving.resume("auto", tmp_path, accelerator, model, optimizer, data=other)


def test_what_was_put_back_is_bitwise_what_was_saved(run, accelerator):
    model, optimizer = fresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    random_numbers = torch.rand(1)
    saving.resume("auto", run, accelerator, model, optimizer)
    stored = load_file(next((run / "checkpoints" / "step-00000006").glob("shard-*")))
    tensors = state.state_tensors(model, optimizer)
    assert tensors.keys() == stored.keys() and len(tensors) > 20
    assert all(torch.equal(tensors[name], value) for name, value in stored.items())
    again = torch.rand(1)
    saving.resume("auto", run, accelerator, model, optimizer)
    assert torch.equal(torch.rand(1), again) and not torch.equal(again, random_numbers)


def test_a_disk_that_fills_up_while_saving(tmp_path, accelerator, capsys):
    """A real failure to write: files of this process may not grow beyond 40 kB for a while."""
    model, optimizer = fresh()
    (tmp_path / "checkpoints").mkdir()
    saves = saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=1)
    saves.after_step(1)
    saves._finish()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        saves.after_step(2)
        saves._finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out = "".join(capsys.readouterr())
    assert "error: the checkpoint of step 2 could not be written: OSError: [Errno 27] File too large" in out
    assert "Training continues" in out and "step-00000001 is intact" in out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step-00000001"]
    saves.after_step(3)
    saves.close()
    assert saving.resume("auto", tmp_path, accelerator, model, optimizer) == 3


def test_too_little_room_is_noticed_before_a_save(tmp_path, accelerator, capsys, monkeypatch):
    model, optimizer = fresh()
    (tmp_path / "checkpoints").mkdir()
    saves = saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=1)
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    saves.after_step(1)
    saves.close()
    assert "GB free" in "".join(capsys.readouterr()) and not list((tmp_path / "checkpoints").iterdir())


def test_a_request_to_stop_saves_and_ends_with_status_0(tmp_path, accelerator):
    model, optimizer = fresh()
    (tmp_path / "checkpoints").mkdir()
    before = signal.getsignal(signal.SIGTERM)
    saves = saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=None)
    saves.after_step(1)
    assert not saves.should_stop() and not list((tmp_path / "checkpoints").iterdir())
    os.kill(os.getpid(), signal.SIGTERM)
    assert saves.should_stop()
    with pytest.raises(SystemExit) as end:
        saves.after_step(2, stop=True)
    assert end.value.code == 0
    assert json.loads((tmp_path / "resumable.json").read_text()) == {"step": 2}
    assert signal.getsignal(signal.SIGTERM) is before
    assert saving.resume("auto", tmp_path, accelerator, model, optimizer) == 2
    saving.AsyncCheckpointer(tmp_path, accelerator, model, optimizer, every=None).close()
    assert not (tmp_path / "resumable.json").exists()
