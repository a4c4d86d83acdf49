"""The alignment end to end, on a handful of miniature scenes: what it leaves, computes, continues and refuses."""

import contextlib

import forked
import numpy as np
import pytest
import torch
from image_runs import (
    SMALL,
    copied,
    exported,
    interrupt,
    metrics,
    read_summary,
    run_align,
    same,
    state,
    validation,
)
from safetensors.torch import load_file
from small_probes import measure_nothing

from prismatic.data.image_datasets import open_images
from prismatic.data.images import evaluation_transform
from prismatic.training import vision as images
from recipes.config.finetune import parse_finetune
from recipes.finetune import main as finetune
from vision_backbones import create_backbone, get_spec
from vision_backbones.maskembed import loss as losses
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.vit import load_vit

pytestmark = pytest.mark.usefixtures("quick")
TWO_STEPS = ["--max_steps", "2", "--data.validation", "miniature:2:4"]


def fresh_student(run):
    return MaskEmbedStudent(load_vit(get_spec(str(run)), pretrained=False), 96)


def loss_by_hand(run, weights):
    """Validation loss and variance of the targets of the default run, image by image."""
    teacher, student = Teacher(load_vit(get_spec("miniature"), pretrained=True)), fresh_student(run)
    student.load_state_dict(weights)
    student.eval()
    scenes, transform = open_images("miniature:7:4"), evaluation_transform("miniature")
    pairs = []
    with torch.no_grad():
        for row in range(len(scenes)):
            rng = np.random.default_rng((0, 0, row))
            rng.integers(2**32)  # goes to the augmentation
            masks, pixels = sample_masks(rng, 1, 36), transform(scenes[row][0])[None]
            pairs.append((student(pixels, masks), teacher(pixels, masks)))
    made, wanted = (torch.stack(part) for part in zip(*pairs, strict=True))
    variance = wanted.double().var(correction=0).item()
    return torch.nn.functional.mse_loss(made, wanted * variance**-0.5).item(), variance


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with no settings of its own, to be read; what it prints is in `printed`."""
    root = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch, (root / "printed").open("w") as printed:
        measure_nothing(patch)
        with contextlib.redirect_stdout(printed):
            assert run_align(root, "first") == read_summary(root / "first")
    return root / "first"


def test_a_run_leaves_a_better_student_that_is_a_backbone(first):
    summary, run = read_summary(first), first
    assert summary["baseline_loss"] == 1 and summary["steps"] == 6
    rows = metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert ["validation_loss" in row for row in rows] == [True] + [False, False, False, True] * 2
    expected = [1e-4 + 9e-4 * 0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert [row["learning_rate"] for row in rows if "loss" in row] == pytest.approx(expected, abs=1e-12)
    before, middle, after = validation(run)
    assert after < middle < 0.75 * before
    assert summary["validation_loss_before"] == before and summary["validation_loss_best"] == after
    assert summary["loss_last"] < 0.75 * summary["loss_first"]

    weights = state(run, "model")
    loss, variance = loss_by_hand(run, weights)
    assert after == pytest.approx(loss, rel=1e-4) and summary["teacher_variance"] == pytest.approx(variance, rel=1e-5)

    spec = get_spec(str(run))
    assert spec.id == "miniature-aligned" and spec.soft_cap == 30 and spec.aligned
    student, pixels = fresh_student(run), torch.randn(2, 3, 48, 48)
    student.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(create_backbone(str(run))(pixels), student.encoder.forward_features(pixels))
    decoder = load_file(run / "checkpoints" / "best" / "backbone.decoder.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith(("decoder.", "encoder.head."))}
    assert same(decoder, kept)
    assert f"--vision_backbone {run}" in (run.parent / "printed").read_text()

    assert run_align(run.parent, "first") == summary, "it is finished: nothing is done"


def test_best_is_of_the_lowest_validation_loss_and_last_of_the_end(tmp_path, monkeypatch, students):
    seen, measured = [], iter([1.0, 0.9, 0.5, 0.7])

    def validate(data, measure):
        seen.append(copied(students[0]))
        return {"validation_loss": next(measured)}

    monkeypatch.setattr(images, "validate", validate)
    summary = run_align(tmp_path, "run", "--epochs", "3")
    for checkpoint, weights in (("best", seen[2]), ("last", seen[3])):
        found = exported(tmp_path / "run", checkpoint)
        assert found.keys() == weights.keys() and same(found, weights)
    assert (summary["validation_loss_best"], summary["validation_loss_last"]) == (0.5, 0.7)
    assert get_spec(str(tmp_path / "run")).weights == str(tmp_path / "run/checkpoints/best/backbone.safetensors")


AUGMENTED = (  # by everything that chance has a hand in
    "--data.crop_mode rrc --data.interpolation random --data.color_jitter 0.4 --data.random_erasing 0.5 --mixup 0.5 "
    "--cutmix 1.0 --drop_path 0.2 --per_device_batch_size 2"
).split()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Two runs that nothing disturbs, without and with EMA."""
    root = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        measure_nothing(patch)
        for name, more in (("plain", []), ("ema", ["--ema_decay", "0.6"])):
            run_align(root, name, *AUGMENTED, *more)
    return root


@pytest.mark.parametrize(
    ("kind", "died_at", "continued_after", "settings"),
    [
        ("ema", 5, 3, []),
        pytest.param("plain", 6, 4, ["--save_every_steps", "2"], marks=pytest.mark.slow),
    ],
    ids=["after an epoch", "in an epoch"],
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    kind, died_at, continued_after, settings, uninterrupted, tmp_path, monkeypatch, capsys
):
    whole, run = uninterrupted / kind, tmp_path / kind
    arguments = [*AUGMENTED, *settings] + (["--ema_decay", "0.6"] if kind == "ema" else [])
    with monkeypatch.context() as patch:
        interrupt(patch, died_at)
        with pytest.raises(KeyboardInterrupt):
            run_align(tmp_path, kind, *arguments)
    assert not (run / "summary.json").exists()
    run_align(tmp_path, kind, *arguments)
    assert f"checkpoints/last, after step {continued_after} of 6" in capsys.readouterr().out
    assert metrics(run, timed=False) == metrics(whole, timed=False)
    assert same(state(run), state(whole))
    assert {key.split(".")[0] for key in state(run)} == {"model", "optimizer"} | ({"ema"} if kind == "ema" else set())
    for checkpoint in ("best", "last"):
        assert same(exported(run, checkpoint), exported(whole, checkpoint))


@pytest.mark.slow
def test_a_run_that_died_in_validation_validates_again(uninterrupted, tmp_path, monkeypatch):
    """Also where a checkpoint is due at the last step of the epoch."""
    validate, calls = images.validate, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*args)

    monkeypatch.setattr(images, "validate", dies)
    arguments = [*AUGMENTED, "--save_every_steps", "3"]
    with pytest.raises(KeyboardInterrupt):
        run_align(tmp_path, "run", *arguments)
    run_align(tmp_path, "run", *arguments)
    assert metrics(tmp_path / "run", timed=False) == metrics(uninterrupted / "plain", timed=False)
    assert same(state(tmp_path / "run"), state(uninterrupted / "plain"))


@pytest.mark.slow
def test_what_may_change_when_a_run_continues(tmp_path, monkeypatch, capsys):
    def dies_at(step, *arguments):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt(patch, step)
            run_align(tmp_path, "run", *arguments)

    dies_at(2, "--learning_rate", "0.002", "--masks.null", "false")
    dies_at(4)  # nothing was stored: it started over
    assert validation(tmp_path / "run")[0] > 1 and "continues" not in capsys.readouterr().out
    for changed, message in (
        (["--weight_decay", "0.5"], r"was started with other settings \(--weight_decay was 0\.01, is 0\.5\)"),
        (["--masks.null", "false"], "--masks.null was True, is False"),
    ):
        with pytest.raises(ValueError, match=message):
            run_align(tmp_path, "run", *changed)
    run_align(tmp_path, "run", "--data.workers", "1", "--per_device_batch_size", "2", "--save_every_steps", "5")
    assert "checkpoints/last, after step 3 of 6" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_two_processes_are_one_are_one_that_accumulates(first, tmp_path):
    """Of 7 validation images, the processes' parts are uneven."""
    place = ["--run_root", tmp_path, "--run_id", "two", "--per_device_batch_size", "2"]
    done = forked.run(["recipes/align.py", *SMALL, *place], processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    run_align(tmp_path, "accumulated", "--per_device_batch_size", "2")
    for other in (tmp_path / "two", tmp_path / "accumulated"):
        for name in ("loss", "validation_loss", "learning_rate", "grad_norm", "loss_terms"):
            expected = [row[name] for row in metrics(first) if name in row]
            assert expected
            assert [row[name] for row in metrics(other) if name in row] == pytest.approx(expected, rel=1e-4), name
        variance = read_summary(first)["teacher_variance"]
        assert read_summary(other)["teacher_variance"] == pytest.approx(variance, rel=1e-6)
        trained = state(other, "model")
        for name, weights in state(first, "model").items():
            torch.testing.assert_close(trained[name], weights, atol=1e-4, rtol=0)


def test_ema_is_what_is_validated_and_exported(tmp_path, monkeypatch, students):
    weights, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        weights.append(copied(students[0]))
        step(self, *args, **kwargs)
        weights.append(copied(students[0]))

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run_align(tmp_path, "run", "--ema_decay", "0.7")
    run = tmp_path / "run"
    average = weights[0]
    for after in weights[1::2]:
        average = {name: 0.7 * value + 0.3 * after[name] for name, value in average.items()}
    assert len(weights) == 12 and same(state(run, "model"), weights[-1])
    stored = state(run, "ema")
    assert stored.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(stored[name], value, atol=1e-6, rtol=1e-5)
    assert same(exported(run, "last"), stored)
    assert validation(run)[-1] == pytest.approx(loss_by_hand(run, stored)[0], rel=1e-4)


def test_bf16_computes_nearly_the_same(first, tmp_path):
    summary, full = run_align(tmp_path, "bf16", "--precision", "bf16"), read_summary(first)
    for name in ("loss_first", "loss_last", "validation_loss_last", "teacher_variance"):
        assert summary[name] == pytest.approx(full[name], rel=0.03), name
    assert all(value.dtype == torch.float32 for value in state(tmp_path / "bf16").values())


@pytest.mark.parametrize(
    "arguments",
    [
        "--loss unmasked_mse --masks.sampler bernoulli --masks.keep_ratio 0.3",
        "--prefix_only true",
        "--student_head mlp --decoder_width 32 --decoder_heads 2 --soft_cap null",
        "--decoder_blocks 0",
        "--decoder_qk_norm true --decoder_qkv_bias false",
        pytest.param("--loss cosine", marks=pytest.mark.slow),
        pytest.param("--loss l1 --teacher_skip_blocks 0", marks=pytest.mark.slow),
        pytest.param("--loss masked_mse --as_reference true", marks=pytest.mark.slow),
        pytest.param("--prefix_only true --as_reference true", marks=pytest.mark.slow),
        pytest.param("--masks.sampler blockwise --masks.antithetical false", marks=pytest.mark.slow),
        pytest.param("--masks.null false", marks=pytest.mark.slow),
        pytest.param("--warmup_epochs 1", marks=pytest.mark.slow),
    ],
)
def test_settings_train(arguments, tmp_path, students):
    summary = run_align(tmp_path, "run", *TWO_STEPS, *arguments.split())
    assert summary["steps"] == 2
    assert summary["baseline_loss"] == (None if "--loss" in arguments else 1)
    losses_of_steps = [row["loss"] for row in metrics(tmp_path / "run") if "loss" in row]
    assert np.isfinite(losses_of_steps).all()
    backbone = create_backbone(str(tmp_path / "run"))
    assert backbone.spec.soft_cap == (None if "soft_cap" in arguments else 30)
    assert same(exported(tmp_path / "run", "last"), students[0].state_dict())


@pytest.mark.parametrize("decay_all", [True, False])
def test_what_decays(decay_all, tmp_path, monkeypatch, students):
    groups = []
    made = torch.optim.AdamW.__init__
    monkeypatch.setattr(torch.optim.AdamW, "__init__", lambda self, g, **k: (groups.extend(g), made(self, g, **k))[1])
    run_align(tmp_path, "run", *TWO_STEPS, "--max_steps", "1", "--decay_all", str(decay_all).lower())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in students[0].named_parameters():
        vector = parameter.ndim < 2 or name.endswith(".bias")
        assert decay.pop(id(parameter)) == (0.01 if decay_all or not vector else 0), name
    assert not decay


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, monkeypatch):
    real, calls = losses.reconstruction_loss, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) * (float("nan") if len(calls) == 8 else 1)  # validation (2), 3 steps, ...

    with monkeypatch.context() as patch:
        patch.setattr(losses, "reconstruction_loss", poisoned)
        with pytest.raises(FloatingPointError, match="loss is nan at step 4: the step was not taken"):
            run_align(tmp_path, "run")
    assert all(torch.isfinite(value).all() for value in state(tmp_path / "run").values())
    create_backbone(str(tmp_path / "run"))
    assert run_align(tmp_path, "run")["steps"] == 6


def test_weights_that_are_not_numbers_are_not_stored(tmp_path, monkeypatch, students):
    """A finite loss may have gradients that are not; at the end of an epoch only validation sees it."""
    taken, real = [], torch.optim.AdamW.step

    def broken(self, *args, **kwargs):
        taken.append(real(self, *args, **kwargs))
        if len(taken) == 6:
            torch.nn.init.constant_(students[0].encoder.norm.weight, float("nan"))

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(FloatingPointError, match="after step 6: .* --run_id run and a lower --learning_rate"):
        run_align(tmp_path, "run")
    for tensors in (state(tmp_path / "run"), exported(tmp_path / "run", "best"), exported(tmp_path / "run", "last")):
        assert all(torch.isfinite(value).all() for value in tensors.values())


def test_an_aligned_run_and_its_decoder_in_a_finetune(first, tmp_path):
    arguments = ["--data.annotations", "miniature:16", "--data.workers", "0", "--data.held_out_limit", "4",
                 "--global_batch_size", "8", "--per_device_batch_size", "8", "--max_steps", "2",
                 "--projector", "pretrained-decoder", "--eval_tasks", "[]"]  # fmt: skip
    backbone = ["--vision_backbone", str(first)]
    summary = finetune(parse_finetune([*arguments, *backbone, "--run_root", str(tmp_path), "--run_id", "vlm"]))
    assert summary["steps"] == 2 and np.isfinite(summary["loss_last"])
    assert (tmp_path / "vlm" / "checkpoints" / "epoch-01" / "model.safetensors").is_file()
