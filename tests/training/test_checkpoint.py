import json

import pytest
import torch
from accelerate import Accelerator

from prismatic.training.checkpoint import (
    STATE,
    latest_checkpoint,
    load_state,
    open_run,
    save_model,
    save_state,
    write_json,
)
from recipes.image_settings import parse_align
from recipes.settings import parse_finetune


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


def test_an_unfinished_run_is_started_over_a_finished_one_refused(tmp_path):
    accelerator = Accelerator(cpu=True)
    config = parse_finetune(["--run_root", str(tmp_path), "--run_id", "mine"])
    folder = open_run(config, accelerator, "name")
    save_model(Saved("model"), Saved("processor"), folder / "checkpoints" / "epoch-01")
    assert open_run(config, accelerator, "name") == folder and latest_checkpoint(folder) is None
    write_json(folder / "summary.json", {"loss_last": 1.0})
    assert json.loads((folder / "summary.json").read_text()) == {"loss_last": 1.0}
    with pytest.raises(ValueError, match="finished run"):
        open_run(config, accelerator, "name")


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
    save_state(tmp_path / "new" / "state.safetensors", {"model": model}, optimizer, {"steps": 3, "best": None})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["state.safetensors"]

    other, its_optimizer = small_model(1)
    its_optimizer.param_groups[0]["lr"] = 0.01  # the rate is the run's to set, at every step
    assert load_state(tmp_path / "new" / "state.safetensors", {"model": other}, its_optimizer) == {
        "steps": 3,
        "best": None,
    }
    found = take_steps(other, its_optimizer, inputs[3:])
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    model, optimizer = small_model(0)
    save_state(path, {"model": model}, optimizer, {})
    with pytest.raises(ValueError, match="is of another model"):
        load_state(path, {"model": torch.nn.Linear(3, 4)}, optimizer)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read .* delete it to start the run over"):
        load_state(path, {"model": model}, optimizer)


def test_a_failed_state_keeps_the_one_before(tmp_path, monkeypatch):
    path, (model, optimizer) = tmp_path / "state.safetensors", small_model(0)
    save_state(path, {"model": model}, optimizer, {"steps": 1})

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        save_state(path, {"model": model}, optimizer, {"steps": 2})
    assert load_state(path, {"model": model}, optimizer) == {"steps": 1}


def test_a_run_continues_from_its_state_and_with_its_settings_alone(tmp_path):
    accelerator = Accelerator(cpu=True)

    def opened(*arguments):
        config = parse_align(["--run_root", str(tmp_path), "--run_id", "mine", *arguments])
        return open_run(config, accelerator, "name", may_change=("data.workers",))

    folder = opened()
    (folder / "checkpoints" / "best").mkdir()
    opened("--learning_rate", "1.0")  # it stored nothing to continue from
    assert not list((folder / "checkpoints").iterdir())
    save_state(folder / STATE, {}, small_model(0)[1], {})
    assert opened("--learning_rate", "1.0", "--data.workers", "7") == folder
    assert (folder / STATE).is_file()
    with pytest.raises(ValueError, match=r"\(--learning_rate was 1\.0, is 0\.001\): use those, or another --run_id"):
        opened()
