"""Targets, reconstructions, losses, gradients and one step equal the reference's."""

import numpy as np
import pytest
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden
from golden_vits import golden_vit, strip

from vision_backbones.maskembed.loss import LOSSES, reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.masked_forward import mask_pixels
from vision_backbones.maskembed.reference_quirks import loss_options
from vision_backbones.maskembed.student import MaskedImageStudent, MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher, merge_moments, moments, unit_scale

A3, A6 = "A_locality_alignment/A3_maskembed", "A_locality_alignment/A6_mim_finetune"
MIM = [name for name in case_names(f"{A6}/cases.json") if name.startswith("mim")]


def close(got, expected, **kwargs):
    torch.testing.assert_close(got, expected, **{"atol": 2e-5, "rtol": 1e-5, **kwargs})


def student_of(case: dict) -> MaskEmbedStudent:
    vit = golden_vit(case["vit_ctor"], capped=True)
    return MaskEmbedStudent(
        vit, vit.embed_dim, head=case["student_head"], decoder_blocks=case["decoder_layers"],
        decoder_width=case["decoder_width"], decoder_heads=case["decoder_heads"], prefix_only=case["prefix_only"],
        as_reference=True,
    )  # fmt: skip


def read(name: str):
    case, golden = load_json(f"{A3}/cases.json")[name], load_tensors(f"{A3}/{name}.safetensors")
    whole = golden_vit(case["vit_ctor"], capped=False)
    whole.load_state_dict(strip(golden, "teacher."))
    teacher = Teacher(whole, skip_blocks=case["teacher_skip_blocks"], prefix_only=case["prefix_only"])
    student = student_of(case)
    student.load_state_dict(strip(golden, "student."))
    return case, golden, teacher, student, golden["masks"].bool()


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A3}/cases.json"))
def test_targets_and_reconstructions(name):
    case, golden, teacher, student, masks = read(name)
    images = golden["images"]
    drawn = sample_masks(np.random.default_rng(case["mask_seed"]), case["batch"], masks.shape[1])
    assert torch.equal(drawn, masks)
    target = golden["teacher_targets_unscaled"]
    close(teacher(images, masks), target.view(len(target), -1, target.shape[-1]))
    teacher.scale.fill_(case["scaling_factor"])
    target = golden["teacher_targets_scaled"]
    close(teacher(images, masks), target.view(len(target), -1, target.shape[-1]))
    close(student.encode(images), golden["encoder_output"])
    close(student(images, masks), golden["reconstruction_before_step"])
    if "masked_images" in golden:
        embed = student.encoder.patch_embed
        close(
            mask_pixels(images, masks, embed.grid_size, embed.patch_size)[:3], golden["masked_images"], atol=0, rtol=0
        )


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A3}/cases.json"))
def test_losses_and_gradients(name):
    case, golden, teacher, student, masks = read(name)
    images = golden["images"]
    for kind, expected in case["train_losses"].items():
        teacher.scale.fill_(case["scaling_factor"] if kind == "mse" else 1)
        target = teacher(images, masks)
        training, validating = (loss_options(prefix_only=case["prefix_only"], training=t) for t in (True, False))
        student.zero_grad()
        reconstruction = student(images, masks)
        loss = reconstruction_loss(reconstruction, target, masks, kind, **training)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        validation = reconstruction_loss(reconstruction, target, masks, kind, **validating)
        assert validation.item() == pytest.approx(case["validation_losses"][kind], rel=1e-5)
        loss.backward()
        gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
        stored = strip(golden, f"{kind}.grad_preclip.")
        assert stored
        for key, gradient in stored.items():
            close(gradients[key], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-7)


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A3}/cases.json"))
def test_one_step(name):
    case, golden, teacher, student, masks = read(name)
    teacher.scale.fill_(case["scaling_factor"])
    (group,) = case["optimizer"]["groups"]
    named = dict(student.named_parameters())
    assert len(named) == group["n_params"]
    optimizer = torch.optim.AdamW(
        named.values(), lr=group["lr"], betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"]
    )
    target = teacher(golden["images"], masks)
    reconstruction_loss(student(golden["images"], masks), target, masks, pair_all=case["prefix_only"]).backward()
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    assert norm.item() == pytest.approx(case["optimizer"]["preclip_total_grad_norm"], rel=1e-5)
    optimizer.step()
    for key, value in strip(golden, "mse.after_step.").items():
        close(named[key].detach(), value, atol=5e-5)


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A3}/cases.json"))
def test_construction(name):
    case = load_json(f"{A3}/cases.json")[name]
    student = student_of(case)
    zero = {n for n, p in student.named_parameters() if not p.any()}
    assert zero == set(case["zero_params_at_init"])
    found = {
        "encoder_block_norm": student.encoder.blocks[0].norm1.eps, "encoder_norm": student.encoder.norm.eps,
        "decoder_block_norm": student.decoder.blocks[0].norm1.eps, "decoder_norm": student.decoder.norm.eps,
    }  # fmt: skip
    assert found == case["layernorm_eps"]


@requires_golden
def test_scaling():
    compared = 0
    for name in case_names(f"{A3}/cases.json"):
        case, golden, teacher, _, _ = read(name)
        batches = [(golden[key], golden[key.replace("images", "masks")]) for key in golden if "baseline_images" in key]
        if not batches:  # only some cases store them
            continue
        compared += 1
        variance = merge_moments([moments(teacher(images, masks)) for images, masks in batches])[2].item()
        assert variance == pytest.approx(case["baseline_loss"], rel=1e-6)
        assert unit_scale(variance) == pytest.approx(case["scaling_factor"], rel=1e-6)
    assert compared


@requires_golden
@pytest.mark.parametrize("name", MIM)
def test_masked_image_modelling(name):
    case, golden = load_json(f"{A6}/cases.json")[name], load_tensors(f"{A6}/{name}.safetensors")
    whole = golden_vit(case["ctor"], capped=False)
    whole.load_state_dict(strip(golden, "teacher."))
    teacher = Teacher(whole, skip_blocks=0)
    vit = golden_vit(case["ctor"], capped=True)
    student = MaskedImageStudent(vit, vit.embed_dim, head=case["student_head"], as_reference=True)
    assert {n.removeprefix("encoder.") for n, p in student.named_parameters() if not p.any()} == set(
        case["zero_params_at_init"]
    )
    student.encoder.load_state_dict(strip(golden, "student."))
    images, masks = golden["images"], golden["masks"].bool()
    close(teacher(images), golden["teacher_targets_unscaled"])
    close(student(images, masks), golden["reconstruction"])
    assert set(case["train_losses"]) == set(LOSSES)
    for kind, expected in case["train_losses"].items():
        teacher.scale.fill_(case["scaling_factor"] if kind == "mse" else 1)
        student.zero_grad()
        target = teacher(images).repeat_interleave(len(masks) // len(images), 0)
        loss = reconstruction_loss(student(images, masks), target, masks, kind)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        gradients = {n.removeprefix("encoder."): p.grad for n, p in student.named_parameters()}
        for key, gradient in strip(golden, f"{kind}.grad.").items():
            close(gradients[key], gradient, atol=1e-5 * gradient.abs().max().item() + 1e-7)
    parts = [moments(teacher(golden[key])) for key in golden if key.startswith("baseline_images")]
    assert merge_moments(parts)[2].item() == pytest.approx(case["baseline_loss"], rel=1e-6)
