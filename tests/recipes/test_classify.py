import numpy as np
import pytest
import torch
from timm.data import Mixup

from prismatic.training.mixing import mix
from recipes.classify import main
from recipes.config.images import parse_classify
from vision_backbones.classifier import load_classifier

pytestmark = pytest.mark.usefixtures("quick")
SMALL = (
    "--data.train miniature:64 --data.validation miniature:32:4 --data.workers 0 --epochs 1 --global_batch_size 16 "
    "--per_device_batch_size 16"
).split()


def run(folder, *arguments):
    return main(parse_classify([*SMALL, "--run_root", str(folder), "--run_id", "c", *arguments]))


@pytest.mark.parametrize("head", ["linear", pytest.param("transformer", marks=pytest.mark.slow), "attention"])
def test_a_run_and_what_it_leaves(tmp_path, head):
    summary = run(tmp_path, "--head", head, "--mixup", "0.8", "--cutmix", "1.0")
    assert summary["steps"] == 4 and 0 <= summary["top1_last"] <= summary["top5_last"] <= 1
    model, classes = load_classifier(tmp_path / "c")
    assert len(classes) == 16
    last, _ = load_classifier(tmp_path / "c" / "checkpoints" / "last")
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "c" / "checkpoints" / "last" / "training.safetensors")
    for name, value in last.state_dict().items():
        assert torch.equal(trained[f"model.{name}"], value)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 16)


@pytest.mark.slow
def test_it_learns(tmp_path):
    summary = run(tmp_path, "--data.train", "miniature:512", "--mixup", "0", "--cutmix", "0", "--learning_rate", "1e-3")
    assert summary["top1_last"] > 2 * max(summary["top1_before"], 1 / 16)


def test_mixing_by_its_formula():
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.1, num_classes=3)
    pixels, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    before = pixels.clone()
    torch.manual_seed(3), np.random.seed(0)
    expected_draw = np.random.get_state()[1].copy()
    mixed, targets = mix(mixup, pixels, labels)
    assert np.array_equal(np.random.get_state()[1], expected_draw) and torch.equal(pixels, before)
    torch.manual_seed(3)
    again, _ = mix(mixup, pixels, labels)
    assert torch.equal(mixed, again), "a pure function of torch's state"
    one_hot = torch.eye(3)[labels] * 0.9 + 0.1 / 3
    share = ((mixed[0] - pixels[3]) / (pixels[0] - pixels[3])).median()  # timm mixes with the batch reversed
    torch.testing.assert_close(mixed[:4], share * pixels[:4] + (1 - share) * pixels[:4].flip(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        targets[:4], share * one_hot[:4] + (1 - share) * one_hot[:4].flip(0), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(mixed[4], pixels[4])
    torch.testing.assert_close(targets[4], one_hot[4])


def test_what_cannot_be_classified(tmp_path):
    from PIL import Image

    (tmp_path / "flat").mkdir()
    Image.new("RGB", (48, 48)).save(tmp_path / "flat" / "1.png")
    with pytest.raises(ValueError, match="two splits of one data set"):
        run(tmp_path, "--data.validation", str(tmp_path / "flat"))
    flat = str(tmp_path / "flat")
    with pytest.raises(ValueError, match="a folder for each class"):
        run(tmp_path, "--data.validation", flat, "--data.train", flat)
    with pytest.raises(ValueError, match="no classifier at"):
        load_classifier(tmp_path / "nothing")
