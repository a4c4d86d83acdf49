"""What trackers get of runs: TensorBoard's files are read back, a stand-in tells what W&B is asked."""

import dataclasses
import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import tracking as accelerate_tracking
from accelerate.utils import LoggerType
from golden_cases import ROOT
from image_runs import interrupt, metrics, run_align
from PIL import Image

from prismatic.training import held_out, loop
from prismatic.training.trackers import flat
from prismatic.training.tracking import MetricsLog, read_metrics
from recipes import finetune
from recipes.config.finetune import parse_finetune

LIBRARIES = ROOT / ".venv" / "trackers"
SMALL = ["--data.annotations", "miniature:24", "--data.workers", "0", "--global_batch_size", "8", "--save_every_steps",
         "1", "--per_device_batch_size", "8", "--data.held_out_limit", "3", "--eval_tasks", "[]"]  # fmt: skip
there = find_spec("tensorboard") or (LIBRARIES / "tensorboard").is_dir()
needs_tensorboard = pytest.mark.skipif(not there, reason="tensorboard is not installed")


@pytest.fixture(autouse=True)
def libraries(monkeypatch, quick):
    monkeypatch.syspath_prepend(LIBRARIES)
    known = [LoggerType.TENSORBOARD, LoggerType.WANDB]
    monkeypatch.setattr(accelerate_tracking, "_available_trackers", known)
    monkeypatch.setattr(loop, "get_available_trackers", lambda: known)


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def points(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def picture(events, tag):
    import io

    (event,) = events.Images(tag)
    return event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


@pytest.mark.slow
@needs_tensorboard
def test_each_run_has_its_events_and_a_resumed_run_goes_on_in_them(tmp_path, monkeypatch):
    def run(id, *arguments):
        where = ["--run_root", str(tmp_path), "--run_id", id, "--trackers", "tensorboard"]
        return finetune.main(parse_finetune([*SMALL, *where, *arguments]))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 5)
        run("one")
    logs = tmp_path / "logs" / "one"
    assert points(read_events(logs), "loss")[-1][0] == 4
    summary = run("one", "--eval_tasks", "vsr", "--eval_root", "miniature:4")
    run("two", "--max_steps", "1")

    events = read_events(logs)
    rows = read_metrics(tmp_path / "one" / "metrics.jsonl")
    for name in ("loss", "held_out_accuracy", "learning_rate"):
        assert points(events, name) == [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
    assert [step for step, _ in points(events, "loss")] == [1, 2, 3, 4, 5, 6]
    asked = points(events, "held_out_accuracy")
    assert [step for step, _ in asked] == [0, 3, 6]
    ends = summary["held_out_accuracy_before"], summary["held_out_accuracy_after"]
    assert (asked[0][1], asked[-1][1]) == pytest.approx(ends)
    assert points(events, "eval/vsr") == [(6, pytest.approx(summary["vsr"]))]
    step, pixels = picture(events, "samples")
    assert step == 6 and np.array_equal(pixels, np.asarray(Image.open(tmp_path / "one" / "samples.png")))
    assert [step for step, _ in points(read_events(tmp_path / "logs" / "two"), "loss")] == [1]
    assert {path.parent.name for path in tmp_path.rglob("events.out.*")} == {"one", "two"}, "no run besides"


@needs_tensorboard
def test_settings_are_numbers_and_nulls(tmp_path):
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    given = "--trackers tensorboard --data.workers 3 --betas [0.9,0.95] --lora.targets q_proj,v_proj"
    config = parse_finetune(given.split())
    (tmp_path / "r").mkdir()
    log = MetricsLog(loop.launch("fp32", config.trackers, str(tmp_path)), config, tmp_path / "r")
    log.accelerator.end_training()
    events = read_events(tmp_path / "logs" / "r")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    stored = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in parse_session_start_info_plugin_data(content).hparams.items()
    }
    assert stored["data.workers"] == 3 and stored["betas.1"] == 0.95 and stored["lora.targets.1"] == "v_proj"
    assert stored["gradient_checkpointing"] == 0 and stored["vision_backbone"] == "miniature-aligned"
    assert "max_steps" not in stored and "image_size" not in stored, "hyperparameters know no null"
    (text,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert "    max_steps: null\n" in text.decode() and "      workers: 3\n" in text.decode()


def test_flat_settings():
    nested = {"a": None, "b": {"c": True, "d": [0.5, {"e": "x"}], "f": []}, "g": 3}
    assert dict(flat(nested)) == {"a": None, "b.c": True, "b.d.0": 0.5, "b.d.1.e": "x", "g": 3}


@needs_tensorboard
def test_an_alignment_is_tracked_with_its_picture(tmp_path):
    run_align(tmp_path, "a", "--trackers", "tensorboard", "--epochs", "1")
    events = read_events(tmp_path / "logs" / "a")
    losses = [(row["step"], row["validation_loss"]) for row in metrics(tmp_path / "a") if "validation_loss" in row]
    assert points(events, "validation_loss") == [(step, pytest.approx(loss)) for step, loss in losses]
    assert picture(events, "patches")[0] == 3


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for W&B."""
    runs = []

    def init(**options):
        run = SimpleNamespace(options=options, logged=[], settings=None, finish=lambda: None)
        run.log = lambda values, step=None: run.logged.append((step, values))
        runs.append(run)
        return run

    config = SimpleNamespace(update=lambda values, **options: setattr(runs[-1], "settings", values))
    stand_in = SimpleNamespace(init=init, config=config, Image=lambda pixels: pixels.shape)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return runs


def test_wandb_gets_a_run_of_its_own_that_is_continued(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_DIR", raising=False)
    accelerator = loop.launch("fp32", ["wandb"], str(tmp_path))
    (tmp_path / "r").mkdir()

    def start(done, *arguments):
        config = parse_finetune(["--trackers", "wandb", *arguments])
        accelerator.trackers.clear()
        log = MetricsLog(accelerator, config, tmp_path / "r", done)
        return log, wandb[-1], config

    log, first, config = start(0)
    assert first.options["project"] == "prismatic" and first.options["name"] == "r"
    assert first.options["entity"] is None and first.options["resume"] == "allow"
    assert first.options["dir"] == str(tmp_path / "logs" / "r")
    assert first.settings == dataclasses.asdict(config), "nested, as it is"
    log({"step": 4, "loss": 0.5, "mfu": None})
    Image.new("RGB", (5, 7)).save(tmp_path / "samples.png")
    log.picture("samples", tmp_path / "samples.png", 4)
    assert first.logged == [(4, {"loss": 0.5}), (4, {"samples": [(7, 5, 3)]})]

    assert start(4)[1].options["id"] == first.options["id"], "it is resumed"
    assert start(0)[1].options["id"] != first.options["id"], "it starts anew"
    own = ["--wandb.project", "p", "--wandb.entity", "us", "--wandb.name", "n", "--wandb.id", "abc"]
    options = start(4, *own)[1].options
    assert [options[name] for name in ("project", "entity", "name", "id")] == ["p", "us", "n", "abc"]
    assert json.loads((tmp_path / "logs" / "r" / "wandb.json").read_text()) == {"id": "abc"}


@pytest.mark.slow
def test_no_memory_for_held_out_questions_ends_nothing(tmp_path, monkeypatch, capsys):
    real, calls = held_out.generate_answers, []

    def generate(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr(held_out, "generate_answers", generate)
    summary = finetune.main(parse_finetune([*SMALL, "--run_root", str(tmp_path), "--run_id", "r"]))
    assert summary["steps"] == 6 and len(calls) == 3
    assert "no memory to answer held-out questions after epoch 1" in "".join(capsys.readouterr())
    rows = read_metrics(tmp_path / "r" / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out_accuracy" in row] == [0, 6]
