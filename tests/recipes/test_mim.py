"""Masked image modelling end to end, and its student as that of an alignment."""

import pytest
import torch
from image_runs import SMALL, copied, metrics, read_summary, run_align, same, state, validation
from safetensors.torch import load_file

from prismatic.training import vision as images
from recipes import mim
from recipes.config.images import parse_mim
from vision_backbones import create_backbone, get_spec
from vision_backbones.vit import load_vit

pytestmark = pytest.mark.usefixtures("quick")


def run_mim(root, id, *arguments):
    return mim.main(parse_mim([*SMALL, "--run_root", str(root), "--run_id", id, *arguments]))


def test_a_run_teaches_a_student_that_can_be_aligned(tmp_path, monkeypatch, capsys):
    summary, run = run_mim(tmp_path, "mim"), tmp_path / "mim"
    assert summary == read_summary(run)
    before, middle, after = validation(run)
    assert after < middle < before and after < 0.75 * before
    assert [row["step"] for row in metrics(run) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert f"python recipes/align.py --teacher miniature --student {run}" in capsys.readouterr().out

    spec = get_spec(str(run))
    assert spec.id == "miniature-mim" and spec.soft_cap == 30 and spec.aligned
    student = load_vit(spec, pretrained=False)
    weights = state(run, "model")
    student.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if ".head." not in k})
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(create_backbone(str(run))(pixels), student.forward_features(pixels))
    assert not list(run.rglob("*.decoder.safetensors")), "there is no decoder to leave"

    seen, train = [], images.train
    monkeypatch.setattr(
        images, "train", lambda *args, **kwargs: (seen.append(copied(args[3])), train(*args, **kwargs))[1]
    )
    run_align(tmp_path, "aligned", "--student", str(run), "--max_steps", "1", "--epochs", "1")
    exported = load_file(run / "checkpoints" / "best" / "backbone.safetensors")
    assert same(exported, {k: seen[0][f"encoder.{k}"] for k in exported}), "the alignment starts from it"
    assert get_spec(str(tmp_path / "aligned")).id == "miniature-mim-aligned"


@pytest.mark.parametrize("arguments", ["--loss masked_mse --masks.null true", "--loss cosine --student_head mlp"])
def test_settings_train(arguments, tmp_path):
    summary = run_mim(tmp_path, "run", "--max_steps", "2", "--data.validation", "miniature:2:4", *arguments.split())
    assert summary["steps"] == 2 and summary["baseline_loss"] is None
