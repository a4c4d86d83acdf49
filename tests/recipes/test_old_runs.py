"""Run folders that earlier versions wrote are read, and their runs continued, as then: see tests/fixtures/README.md."""

import jsonlines
import pytest
import torch
from golden_cases import ROOT
from PIL import Image

import prismatic
from prismatic.text.prompts import IMAGE_TOKEN
from recipes.config.finetune import parse_finetune
from recipes.finetune import main

OLD = ROOT / "tests" / "fixtures" / "lora-run"
SETTINGS = (
    "--stage lora --lora.rank 2 --data.annotations miniature:64 --data.held_out_limit 1 --data.workers 0 "
    "--global_batch_size 8 --per_device_batch_size 8 --max_steps 4 --save_every_steps 2 --eval_tasks [] "
    "--precision fp32"
)


def losses(path):
    with jsonlines.open(path) as rows:
        return {row["step"]: row["loss"] for row in rows if "loss" in row}


def logits(folder):
    model, processor = prismatic.load(folder)
    picture = Image.fromarray(torch.linspace(0, 255, 48 * 48 * 3).reshape(48, 48, 3).byte().numpy())
    inputs = processor(images=picture, text=f"{IMAGE_TOKEN}In: What color is the cross?\nOut:")
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.usefixtures("any_precision")
def test_a_run_of_an_earlier_version_continues_as_it_did(tmp_path):
    step = OLD / "checkpoints" / "step-00000002"
    main(parse_finetune([*SETTINGS.split(), "--resume", str(step), "--run_root", str(tmp_path), "--run_id", "new"]))
    then, now = losses(OLD / "metrics.jsonl"), losses(tmp_path / "new" / "metrics.jsonl")
    assert now == {number: pytest.approx(then[number], rel=1e-4) for number in (3, 4)}
    torch.testing.assert_close(logits(tmp_path / "new"), logits(OLD / "checkpoints" / "epoch-01"), rtol=1e-3, atol=1e-3)


def test_a_step_checkpoint_of_an_earlier_version_is_a_model():
    early, late = logits(OLD / "checkpoints" / "step-00000002"), logits(OLD / "checkpoints" / "epoch-01")
    assert early.shape == late.shape and not torch.allclose(early, late, atol=1e-2)
