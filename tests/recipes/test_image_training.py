"""What align, mim and classify share: mixed images, image sizes, random weights, left-out blocks."""

import pytest
import torch
from image_runs import SMALL, copied, interrupt, metrics, same, state
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from prismatic.data.image_datasets import open_images
from prismatic.data.images import evaluation_transform
from prismatic.training import vision
from prismatic.training.mixing import image_mixer
from recipes import align, classify, mim
from recipes.config.images import parse_align, parse_classify, parse_mim
from vision_backbones import create_backbone, get_spec
from vision_backbones.classifier import build_classifier, freeze_backbone, load_classifier
from vision_backbones.maskembed.student import MaskedImageStudent, MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.vit import build_vit
from vision_backbones.weights import ASSETS

pytestmark = pytest.mark.usefixtures("quick")
ONE_STEP = ["--max_steps", "1", "--data.validation", "miniature:2:4"]
WEIGHTS = {name: value.float() for name, value in load_file(ASSETS / "miniature.safetensors").items()}


RECIPES = {
    "align": (align.main, parse_align), "mim": (mim.main, parse_mim), "classify": (classify.main, parse_classify)
}  # fmt: skip


def run(recipe, root, id, *arguments):
    main, parse = RECIPES[recipe]
    return main(parse([*SMALL, "--run_root", str(root), "--run_id", id, *arguments]))


@pytest.fixture
def starts(monkeypatch):
    """Copies of the weights with which the runs of a test start."""
    seen, train = [], vision.train
    monkeypatch.setattr(
        vision, "train", lambda *args, **kwargs: (seen.append(copied(args[3])), train(*args, **kwargs))[1]
    )
    return seen


def test_mixup_blends_an_image_with_the_one_across():
    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "masks": torch.ones(4, 4, dtype=torch.bool)}
    before, mixed = batch["pixel_values"].clone(), image_mixer(parse_align([*SMALL, "--mixup", "0.5"]))(batch)
    assert torch.equal(batch["pixel_values"], before) and mixed["masks"] is batch["masks"]
    pixels, across = mixed["pixel_values"], before.flip(0)
    shares = (pixels - across) / (before - across)
    torch.testing.assert_close(shares, shares.median().expand_as(shares), atol=1e-3, rtol=0)
    assert 0 < shares.median() < 1


def test_cutmix_pastes_a_rectangle_of_the_one_across():
    before = torch.randn(4, 3, 32, 32)
    torch.manual_seed(3)
    pixels = image_mixer(parse_align([*SMALL, "--cutmix", "1.0"]))({"pixel_values": before})["pixel_values"]
    pasted = (pixels != before).all(1)
    assert torch.equal(torch.where(pasted[:, None], before.flip(0), before), pixels)
    assert 0 < pasted[0].sum() == pasted[0].any(0).sum() * pasted[0].any(1).sum() < 32 * 32


def test_nothing_is_mixed_unless_it_is_asked_for():
    batch = {"pixel_values": torch.randn(2, 3, 8, 8)}
    state = torch.get_rng_state()
    assert image_mixer(parse_align(SMALL))(batch) is batch and torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def calls():
    """Which modules were called, whether they were in training, and with what."""
    seen = []

    def see(module, given):
        if isinstance(given[0], torch.Tensor):
            seen.append((type(module), module.training, given[0].clone()))

    hook = register_module_forward_pre_hook(see)
    yield seen
    hook.remove()


@pytest.mark.parametrize("recipe", ["align", "mim"])
def test_teacher_and_student_see_the_same_mixed_images_in_training_alone(recipe, tmp_path, calls):
    run(recipe, tmp_path, "run", "--data.crop_mode", "none", "--mixup", "1.0", "--epochs", "1")
    student = {"align": MaskEmbedStudent, "mim": MaskedImageStudent}[recipe]
    trained = [pixels for kind, training, pixels in calls if kind is student and training]
    taught = [pixels for kind, _, pixels in calls if kind is Teacher]
    assert len(trained) == 3 and all(any(torch.equal(one, other) for other in taught) for one in trained)

    images, held_out = (
        torch.stack([evaluation_transform("miniature")(source[row][0]) for row in range(len(source))])
        for source in (open_images("miniature:12"), open_images("miniature:7:4"))
    )
    seen = torch.cat(trained)
    assert not any(torch.equal(one, image) for one in seen for image in images)
    torch.testing.assert_close(seen.sum(0), images.sum(0), atol=1e-4, rtol=1e-4)  # blending in pairs keeps the sum
    validated = torch.cat([pixels for kind, training, pixels in calls if kind is student and not training])
    assert torch.equal(validated, held_out.repeat(2, 1, 1, 1)), "before and after"


@pytest.mark.parametrize("recipe", ["align", "mim", "classify"])
def test_random_weights_are_those_of_the_student_alone(recipe, tmp_path, starts):
    backbone = ["--vision_backbone", "miniature"] if recipe == "classify" else ["--teacher", "miniature"]
    usual = run(recipe, tmp_path, "usual", *ONE_STEP, *backbone)
    fresh = run(recipe, tmp_path, "fresh", *ONE_STEP, *backbone, "--pretrained", "false")
    for start, pretrained in zip(starts, (True, False), strict=True):
        own = {name.removeprefix("encoder."): value for name, value in start.items()}
        for name in ("blocks.0.attn.qkv.weight", "pos_embed", "patch_embed.proj.weight"):
            assert torch.equal(own[name], WEIGHTS[name]) == pretrained, name
    if recipe != "classify":
        assert usual["teacher_variance"] == fresh["teacher_variance"]


@pytest.mark.parametrize("recipe", ["align", "mim", "classify"])
def test_an_image_size_of_ones_own(recipe, tmp_path, starts, calls):
    """Position embeddings are those of the weights, interpolated; the backbone that is left keeps the size."""
    backbone = [] if recipe != "classify" else ["--vision_backbone", "miniature"]
    run(recipe, tmp_path, "run", *ONE_STEP, *backbone, "--image_size", "64")
    assert {pixels.shape[2:] for _, _, pixels in calls if pixels.ndim == 4 and pixels.shape[1] == 3} == {(64, 64)}
    prefix, patches = WEIGHTS["pos_embed"][:, :1], WEIGHTS["pos_embed"][:, 1:]
    grid = patches.reshape(1, 6, 6, 96).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True)
    own = {name.removeprefix("encoder."): value for name, value in starts[0].items()}
    expected = torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(own["pos_embed"], expected, atol=1e-4, rtol=1e-3)  # the file is in half precision
    if recipe == "classify":
        assert load_classifier(tmp_path / "run")[0](torch.randn(2, 3, 64, 64)).shape[0] == 2
    else:
        left = create_backbone(str(tmp_path / "run"))
        assert left.image_size == 64 and left.grid == (8, 8)


def test_an_image_size_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="image size 60 is not a multiple of its patch size 8; use 56 or 64"):
        run("align", tmp_path, "run", "--image_size", "60")


def test_drop_path_rises_from_block_to_block_and_is_not_left_in_the_backbone(tmp_path, students):
    run("align", tmp_path, "run", *ONE_STEP, "--drop_path", "0.7")
    rates = [
        block.drop_path1.drop_prob for block in students[0].encoder.blocks if isinstance(block.drop_path1, DropPath)
    ]
    assert rates == pytest.approx([0.1 * number for number in range(1, 8)])
    assert not any(isinstance(module, DropPath) for module in students[0].decoder.modules())
    assert "drop_path_rate" not in get_spec(str(tmp_path / "run")).arch_kwargs


def test_a_decoder_as_it_is_asked_for():
    spec = get_spec("miniature")
    plain, other = (
        MaskEmbedStudent(build_vit(spec), 96, **settings).decoder.blocks[0].attn
        for settings in ({}, {"decoder_qk_norm": True, "decoder_qkv_bias": False})
    )
    assert isinstance(plain.q_norm, nn.Identity) and plain.qkv.bias is not None
    assert isinstance(other.q_norm, nn.LayerNorm) and other.qkv.bias is None


def test_a_probed_backbone_stays_as_it_is_and_continues(tmp_path, monkeypatch):
    arguments = ["--vision_backbone", "miniature", "--head", "attention", "--freeze_backbone", "true"]
    run("classify", tmp_path, "whole", *arguments)
    trained = state(tmp_path / "whole", "model")
    assert all(torch.equal(trained[name], value) for name, value in WEIGHTS.items())
    assert {name.split(".")[0] for name in trained.keys() - WEIGHTS.keys()} == {"attn_pool", "head"}
    learning = {name.split(".")[0] for name, p in freeze_backbone(fresh()).named_parameters() if p.requires_grad}
    assert learning == {"attn_pool", "head"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 5)
        run("classify", tmp_path, "parts", *arguments)
    run("classify", tmp_path, "parts", *arguments)
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))
    assert metrics(tmp_path / "parts", timed=False) == metrics(tmp_path / "whole", timed=False)


def fresh():
    return build_classifier(get_spec("miniature"), "attention", 3, pretrained=False)


def test_a_finished_run_keeps_its_settings(tmp_path, capsys):
    run("align", tmp_path, "a", *ONE_STEP)
    before = (tmp_path / "a" / "config.yaml").read_text()
    run("align", tmp_path, "a", *ONE_STEP, "--learning_rate", "0.5", "--gradient_checkpointing", "true")
    assert (tmp_path / "a" / "config.yaml").read_text() == before
    assert "already finished" in (said := capsys.readouterr().out) and "resuming" not in said


def test_the_micro_batch_stays_where_images_are_mixed(tmp_path):
    run("align", tmp_path, "a", *ONE_STEP, "--mixup", "0.5")
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(ValueError, match="--per_device_batch_size was 4, is 2"):
        run("align", tmp_path, "a", *ONE_STEP, "--mixup", "0.5", "--per_device_batch_size", "2")


WRONG = {
    "--mixup 1 --global_batch_size 1": "mix the images of a micro-batch",
    "--data.horizontal_flip 3": "horizontal_flip is 3.0: expected a probability",
    "--data.validation_crop 1e-6": "expected 0.1 to 1",
    "--data.crop_mode rrc --data.crop_scale 2,3": "from 0.01 to 1",
    "--data.crop_mode rkrc --data.crop_scale 1e-8,1e-7": "from 0.01 to 10",
    "--data.crop_mode rkrc --data.crop_ratio 1e5,1e6": "from 0.1 to 10",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_settings_that_cannot_be_meant(arguments, capsys):
    with pytest.raises(SystemExit):
        parse_align([*SMALL, *arguments.split()])
    assert WRONG[arguments] in capsys.readouterr().err


def test_a_frozen_backbone_has_no_drop_path(capsys):
    with pytest.raises(SystemExit):
        parse_classify([*SMALL, "--freeze_backbone", "true", "--drop_path", "0.5"])
    assert "a frozen backbone is not regularised" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["crop_scale 0.5,1", "crop_ratio 1,1", "interpolation random"])
def test_images_that_are_left_as_they_are_refuse_other_crops(setting, tmp_path):
    with pytest.raises(ValueError, match="crop mode 'none' leaves images as they are"):
        run("align", tmp_path, "a", *ONE_STEP, "--data.crop_mode", "none", *f"--data.{setting}".split())
