import json

import pytest
from accelerate import Accelerator

from prismatic.training.checkpoint import latest_checkpoint, open_run, save_model, write_json
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
