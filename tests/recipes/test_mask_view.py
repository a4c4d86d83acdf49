"""What is shown of MaskEmbed, against the recipe's own loss on the same image and masks."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from golden_cases import ROOT
from image_runs import run_align
from PIL import Image
from safetensors.torch import load_file
from small_probes import measure_nothing

from prismatic.miniature.scenes import scene
from prismatic.training.masked import Pair
from recipes import align
from recipes.reproduce.bundled import CARDS
from vision_backbones import check_spec
from vision_backbones.backbone_files import decoder_path, write_tensors
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.masked_forward import mask_pixels
from vision_backbones.maskembed.pairing import check_pair
from vision_backbones.maskembed.view import Alignment, MaskEmbedView, find_alignment
from vision_backbones.weights import ASSETS, read_header

IMAGE = Image.fromarray(scene(11, 4).image)
MASKS = sample_masks(np.random.default_rng(0), 1, 36)  # one drawn, its complement, and all visible


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Small runs that differ in all that is recorded, and their students as they were trained."""
    from accelerate.state import AcceleratorState

    root, trained, train = tmp_path_factory.mktemp("aligned"), {}, align.export

    def kept(config, spec, teacher, model, folder):
        trained[config.run_id] = (config, teacher, {k: v.clone() for k, v in model.state_dict().items()})
        train(config, spec, teacher, model, folder)

    with pytest.MonkeyPatch.context() as patch:
        measure_nothing(patch)
        patch.setattr(align, "export", kept)
        patch.setattr("prismatic.training.plots.draw_patches", lambda *args: None)
        for name, arguments in RUNS.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            run_align(root, name, "--precision", "fp32", "--epochs", "1", *arguments.split())
    return root, trained


RUNS = {
    "mse": "--learning_rate 1e-3",
    "cosine": "--loss cosine --teacher_skip_blocks 0 --student_head mlp --decoder_width 32 --decoder_heads 2",
    "masked": "--loss masked_mse --decoder_blocks 1 --as_reference true --soft_cap null",
}


def objective(run, trained, image, masks):
    """The recipe's loss: its teacher and student, built and filled as training has them."""
    config, teacher, weights = trained[run]
    pair = Pair(*check_pair("miniature", None, config.soft_cap), masks=None)
    _, student = align.build(config, pair, True)
    student.load_state_dict(weights)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        return align.alignment_loss(
            config, teacher.cpu(), student.eval(), {"pixel_values": pixels, "masks": masks}, False
        )


@pytest.mark.parametrize("run", RUNS)
def test_distances_are_those_that_training_makes_small(run, runs):
    root, trained = runs
    view = MaskEmbedView(str(root / run))
    for masks in MASKS.split(1):
        seen, loss = view(IMAGE, masks[0]), objective(run, trained, IMAGE, masks).item()
        assert seen.distances.shape == (36,) and seen.prefix.shape == (1,)
        assert torch.cat([seen.prefix, seen.distances]).mean().item() == pytest.approx(loss, rel=1e-4, abs=1e-7)
        assert seen.loss == pytest.approx(loss, rel=1e-4, abs=1e-7)
        assert seen.distances.std() > 0 or not seen.distances.any()
    if run == "masked":
        distances = view(IMAGE, MASKS[0]).distances
        assert ((distances > 0) == ~MASKS[0]).all(), "visible patches do not count"


@pytest.mark.parametrize("run", RUNS)
def test_what_is_recorded(run, runs):
    root, trained = runs
    config, teacher, _ = trained[run]
    found = find_alignment(check_spec(str(root / run)))
    assert dataclasses.astuple(found) == (
        "miniature", config.teacher_skip_blocks, teacher.scale.item(), config.loss, False, config.as_reference
    )  # fmt: skip
    assert (found.scale == 1) == (run != "mse")


def test_a_run_of_an_earlier_version_says_it_in_its_settings(runs, tmp_path):
    run = shutil.copytree(runs[0] / "mse", tmp_path / "old")
    expected = MaskEmbedView(str(run))(IMAGE, MASKS[0])
    file = run / "checkpoints" / "best" / "backbone.decoder.safetensors"
    write_tensors(file, load_file(file), {"decoder": read_header(file)[1]["decoder"]})
    found = MaskEmbedView(str(run))(IMAGE, MASKS[0])
    torch.testing.assert_close(found.distances, expected.distances)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match="the scale of the teacher's tokens is missing: .* finish the run"):
        MaskEmbedView(str(run))
    (run / "config.yaml").write_text("teacher: miniature")
    with pytest.raises(ValueError, match="config.yaml does not say what was aligned .*teacher_skip_blocks"):
        MaskEmbedView(str(run))


def test_the_bundled_pair_reconstructs():
    """Far better than the mean or nothing would, about as well as its card says of other scenes."""
    view, losses, nothing = MaskEmbedView("miniature-aligned"), [], []
    for index in range(20):
        image = Image.fromarray(scene(4, index).image)
        masks = sample_masks(np.random.default_rng(index), 1, 36)
        losses += [view(image, mask).loss for mask in masks]
        nothing.append(view.teacher(view.transform(image)[None], masks).square().mean().item())
    told = json.loads(CARDS.read_text())["aligned"]["measured"]["validation_loss"]
    assert np.mean(losses) == pytest.approx(told, rel=0.4) and told < 0.02 and np.mean(nothing) > 0.9


def test_the_picture_is_what_the_teacher_sees():
    view = MaskEmbedView("miniature-aligned")
    assert view.grid == (6, 6) and view.patch == 8
    picture = np.asarray(view(IMAGE, MASKS[0]).picture).astype(int)
    shown = np.kron(MASKS[0].view(6, 6).numpy(), np.ones((8, 8), bool))
    assert (picture[shown] == np.asarray(IMAGE)[shown]).all() and (np.abs(picture[~shown] - 127.5) <= 0.5).all()
    pixels = mask_pixels(view.transform(IMAGE)[None], MASKS[:1], view.grid, (8, 8))
    again = view.transform(Image.fromarray(picture.astype(np.uint8)))[None]
    torch.testing.assert_close(again, pixels, atol=0.005, rtol=0)
    for mask, shown in ((MASKS[0].float(), r"torch.float32 \[36\]"), (MASKS[0][:5], r"torch.bool \[5\]")):
        with pytest.raises(ValueError, match=rf"the mask is {shown}, expected torch.bool \[36\]"):
            view(IMAGE, mask)


def test_the_example_of_the_docs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "align.md").read_text(), re.S)
    IMAGE.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    expected = MaskEmbedView("miniature-aligned")(IMAGE, names["visible"])
    assert names["loss"] == expected.loss and torch.equal(names["distances"], expected.distances)
    assert torch.cat([names["prefix"], names["distances"]]).mean().item() == pytest.approx(names["loss"], rel=1e-5)


@pytest.fixture
def bundled(tmp_path):
    """A copy of the bundled pair under its own name."""
    for name in ("miniature-aligned.safetensors", "miniature-aligned.decoder.safetensors"):
        shutil.copy(ASSETS / name, tmp_path / name)
    return tmp_path / "miniature-aligned.safetensors"


def test_what_is_missing_is_said(bundled, runs):
    decoder = decoder_path(bundled)
    tensors, metadata = load_file(decoder), read_header(decoder)[1]
    assert MaskEmbedView(str(bundled)).alignment.teacher == "miniature"

    def refused(message, change=None, drop=None, **about):
        given = {k: v for k, v in tensors.items() if not (drop and k.startswith(drop))} | (change or {})
        write_tensors(decoder, given, {k: v for k, v in (metadata | about).items() if v is not None})
        with pytest.raises(ValueError, match=message):
            MaskEmbedView(str(bundled))

    refused("does not say: its teacher, the teacher's skip_blocks and scale, and the loss are missing", alignment=None)
    own = Alignment("miniature", 1, 0.58, "mse")
    assert MaskEmbedView(str(bundled), own).alignment is own
    about = json.loads(metadata["alignment"])
    refused("cannot be read .*scale is '1'", alignment=json.dumps(about | {"scale": "1"}))
    refused("cannot be read", alignment="{")
    refused("the teacher that 'miniature-aligned' was aligned with: unknown .* 'runs/gone'",
            alignment=json.dumps(about | {"teacher": "runs/gone"}))  # fmt: skip
    refused("was aligned with prefix_only", alignment=json.dumps(about | {"prefix_only": True}))
    refused("unknown loss 'mes'.*did you mean mse", alignment=json.dumps(about | {"loss": "mes"}))
    refused(r"lacks encoder.head \(encoder to decoder\)", drop="encoder.head")
    refused("lacks the number of attention heads", decoder=None)
    refused(r"does not fit .*: decoder.head.weight is \[5, 96\], expected \[96, 96\]",
            {"decoder.head.weight": torch.zeros(5, 96)})  # fmt: skip
    refused("infinite or not a number", {"decoder.head.bias": torch.full((96,), torch.inf)})
    decoder.unlink()
    with pytest.raises(ValueError, match="the decoder of backbone 'miniature-aligned' is missing: no file .*decoder"):
        MaskEmbedView(str(bundled))
    with pytest.raises(ValueError, match="backbone 'miniature' is not aligned"):
        MaskEmbedView("miniature")
