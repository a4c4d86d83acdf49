"""The recipe end to end, on a handful of miniature scenes, and everything it refuses."""

import json
import math
import shutil

import draccus
import jsonlines
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import prismatic
from prismatic.checkpoints.epoch import latest_checkpoint
from recipes.config.finetune import parse_finetune
from recipes.finetune import main

SMALL = ["--data.annotations", "miniature:48", "--data.workers", "0", "--global_batch_size", "16",
         "--per_device_batch_size", "8", "--data.held_out_limit", "8",
         "--eval_tasks", "vsr", "--eval_root", "miniature:8"]  # fmt: skip


pytestmark = pytest.mark.usefixtures("quick")


def run(tmp_path, *arguments):
    return main(parse_finetune([*SMALL, "--run_root", str(tmp_path), *arguments]))


def test_a_finetune_leaves_a_usable_run(tmp_path, capsys):
    summary = run(tmp_path, "--run_id", "first")
    folder = tmp_path / "first"
    stored = json.loads((folder / "summary.json").read_text())
    assert stored == summary
    keys = {"held_out_accuracy_before", "held_out_accuracy_after", "prior_baseline_accuracy", "seconds"}
    assert keys | {"tokens_per_second", "loss_first", "loss_last"} <= set(stored)
    assert summary["loss_last"] < summary["loss_first"]
    evaluated = json.loads((folder / "eval" / "results.json").read_text())
    assert summary["vsr"] == evaluated["tasks"]["vsr"]["metrics"]["accuracy"]

    with jsonlines.open(folder / "metrics.jsonl") as reader:
        steps = [row for row in reader if "loss" in row]
    assert [s["step"] for s in steps] == list(range(1, 7))  # 48 rows / 16 x 2 epochs
    assert all(
        math.isfinite(s[k]) for s in steps for k in ("loss", "grad_norm", "mfu", "tokens_per_second", "memory_gb")
    )
    assert steps[0]["learning_rate"] == 0 and steps[0]["padding_share"] == 0
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"epoch-01", "epoch-02", "latest", "step-00000006"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["packing"] is True
    again = parse_finetune(["--config_path", str(folder / "config.yaml"), "--run_id", "rerun"])
    assert draccus.dump(again).replace("rerun", "first") == (folder / "config.yaml").read_text()
    printed = capsys.readouterr().out
    assert "questions/s" in printed
    for said in ("vision_backbone", "frozen", "expected", "prior baseline accuracy", str(folder)):
        assert said in printed

    model, processor = prismatic.load(folder)
    trained = load_file(latest_checkpoint(folder) / "model.safetensors")
    assert torch.equal(model.projector.state_dict()["0.weight"], trained["model.projector.0.weight"])
    start, _ = prismatic.build("miniature-aligned", "miniature", "gelu-mlp")
    same = dict(start.vision_backbone.named_parameters())
    assert all(torch.equal(p, same[n]) for n, p in model.vision_backbone.named_parameters()), "the backbone is frozen"
    assert not torch.equal(model.llm.lm_head.weight, start.llm.lm_head.weight)

    written = (folder / "summary.json").stat()
    assert run(tmp_path, "--run_id", "first") == summary, "it is finished: nothing is done"
    assert (folder / "summary.json").stat() == written
    with pytest.raises(ValueError, match="--resume never does not replace: choose another --run_id"):
        run(tmp_path, "--run_id", "first", "--resume", "never")
    again = run(tmp_path, "--run_id", "second", "--init_from", str(folder), "--max_steps", "2")
    assert again["steps"] == 2 and again["loss_first"] < summary["loss_first"]


@pytest.mark.slow
def test_packed_and_padded_runs_are_the_same_run(tmp_path):
    packed = run(tmp_path, "--run_id", "packed", "--data.packing", "true")
    padded = run(tmp_path, "--run_id", "padded", "--data.packing", "false")
    assert padded["loss_last"] == pytest.approx(packed["loss_last"], rel=1e-3)
    assert packed["padding_share"] == 0 < padded["padding_share"]


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_step_is_finished(tmp_path):
    arguments = ["--run_id", "late", "--save_every_steps", "3", "--eval_tasks", "[]"]  # 3 steps an epoch, 2 epochs
    summary = run(tmp_path, *arguments)
    expected = load_file(tmp_path / "late" / "checkpoints" / "epoch-02" / "model.safetensors")
    for epoch in ("epoch-01", "epoch-02"):
        shutil.rmtree(tmp_path / "late" / "checkpoints" / epoch)
    (tmp_path / "late" / "summary.json").unlink()
    AcceleratorState._reset_state(reset_partial_state=True)
    again = run(tmp_path, *arguments, "--data.workers", "1")
    for key in ("steps", "loss_last", "held_out_accuracy_before", "held_out_accuracy_after"):
        assert again[key] == summary[key]
    found = load_file(tmp_path / "late" / "checkpoints" / "epoch-02" / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("stage", [pytest.param("align", marks=pytest.mark.slow), "full-finetune", "lora"])
def test_stages_train_what_they_say(stage, tmp_path):
    arguments = ["--stage", stage, "--run_id", stage, "--max_steps", "2", "--data.sampler", "split-modality"]
    arguments += "--eval_tasks [] --data.held_out_limit 1 --global_batch_size 4 --per_device_batch_size 4".split()
    run(tmp_path, *arguments, "--lora.rank", "4", "--precision", "bf16", "--gradient_checkpointing", "true")
    model, _ = prismatic.load(tmp_path / stage)
    start, _ = prismatic.build("miniature-aligned", "miniature", "gelu-mlp")
    changed = {
        part
        for part in ("vision_backbone", "projector", "llm")
        for new, old in zip(getattr(model, part).parameters(), getattr(start, part).parameters(), strict=True)
        if not torch.equal(new.bfloat16(), old.bfloat16())  # what is frozen was trained beside in bfloat16
    }
    trained = {"align": set(), "full-finetune": {"vision_backbone", "llm"}, "lora": {"llm"}}
    assert changed == trained[stage] | {"projector"}
    adapters = (latest_checkpoint(tmp_path / stage) / "adapter_model.safetensors").exists()
    assert adapters == (stage == "lora")


def test_bad_images_stop_or_are_counted(tmp_path):
    rows = [
        {
            "id": i,
            "image": f"{i}.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x"}],
        }
        for i in range(6)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"not a picture")
    data = [
        "--data.annotations",
        str(tmp_path / "rows.json"),
        "--global_batch_size",
        "2",
        "--per_device_batch_size",
        "2",
    ]
    with pytest.raises(ValueError, match=r"[35]\.png"):
        run(tmp_path, *data, "--run_id", "stops")
    summary = run(tmp_path, *data, "--run_id", "skips", "--data.on_bad_image", "skip", "--epochs", "1")
    assert summary["skipped_images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vision_backbone", "clip-vit-l-336"], "did you mean .*clip-vit-l-336px"),
        (["--llm", "llama2-7b-pur"], "did you mean llama2-7b-pure"),
        (["--projector", "gelu_mlp"], "did you mean gelu-mlp"),
        (["--projector", "fused-gelu-mlp"], "single one"),
        (["--vision_backbone", "miniature", "--projector", "pretrained-decoder"], "not aligned"),
        (["--vision_backbone", "dinosiglip-vit-so-384px", "--projector", "transformer"], "fused"),
        (["--image_size", "50"], "multiple of its patch size"),
        (["--global_batch_size", "17"], "not a multiple"),
        (["--data.annotations", "nowhere.json"], "no annotation file"),
        (["--plugins", "no_such_module"], "no plugin module"),
        (["--trackers", "no-such-tracker"], "tracker no-such-tracker is not installed"),
    ],
)
def test_bad_input_fails_before_weights_are_read(arguments, message, tmp_path, monkeypatch):
    def read_no_weights(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("prismatic.models.build.build", read_no_weights)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *arguments)
    assert not list(tmp_path.glob("*+*")), "a refused run leaves no folder"


def test_an_empty_data_set_is_refused(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="no rows"):
        run(tmp_path, "--data.annotations", str(tmp_path / "empty.json"))
