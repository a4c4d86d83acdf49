"""Schedules and whole trajectories of the reference's alignment, through the loop that recipes use."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from golden_cases import case_names, load_json, load_tensors, requires_golden
from golden_vits import golden_vit, strip

from prismatic.data import batching
from prismatic.training import loop, optim
from prismatic.training.losses import Objective, image_counts
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher

A3, A5, A7 = (f"A_locality_alignment/{name}" for name in ("A3_maskembed", "A5_lr_schedule", "A7_training_trajectory"))


@requires_golden
def test_schedules():
    schedules = load_json(f"{A5}/schedules.json")
    assert schedules
    for case in schedules:
        updates, expected = case["updates_per_epoch"], case["lr_used_at_update"]
        total, warmup = case["epochs"] * updates, case["warmup_epochs"] * updates
        settings = {"peak": case["lr"], "minimum": case["min_lr"], "total_steps": total}

        def rate(step, warmup=warmup, case=case, updates=updates, settings=settings):
            if not case["overrides"].get("sched_on_updates", True):  # once an epoch
                step = step // updates * updates
            if case["overrides"].get("warmup_prefix") and step >= warmup:  # the cosine starts after the warm-up
                return optim.cosine_rate(step - warmup, **settings)
            return optim.cosine_rate(step, **settings, warmup_steps=warmup, warmup_from=case["warmup_lr"])

        assert [rate(step) for step in range(len(expected))] == pytest.approx(expected, abs=1e-12), case
        assert rate(len(expected)) == pytest.approx(case["lr_after_last"], abs=1e-12)


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A7}/cases.json"))
def test_trajectories(name):
    case, golden = load_json(f"{A7}/cases.json")[name], load_tensors(f"{A7}/trajectory.safetensors")
    model_case, weights = load_json(f"{A3}/cases.json")["cls"], load_tensors(f"{A3}/cls.safetensors")
    whole = golden_vit(model_case["vit_ctor"], capped=False)
    whole.load_state_dict(strip(weights, "teacher."))
    teacher = Teacher(whole, skip_blocks=model_case["teacher_skip_blocks"])
    teacher.scale.fill_(case["teacher_output_scale"])
    student = MaskEmbedStudent(
        golden_vit(model_case["vit_ctor"], capped=True),
        teacher.vit.embed_dim,
        head=model_case["student_head"],
        decoder_blocks=model_case["decoder_layers"],
        decoder_width=model_case["decoder_width"],
        decoder_heads=model_case["decoder_heads"],
        as_reference=True,
    )
    student.load_state_dict(strip(weights, "student."))
    patches = student.encoder.patch_embed.num_patches

    def loss(model, batch):
        pixels, masks = batch["pixel_values"], batch["masks"]
        return reconstruction_loss(model(pixels, masks), teacher(pixels, masks), masks, case["loss"])

    def batch(number, seed):
        pixels = golden[f"images.{number}"]
        masks = sample_masks(np.random.default_rng(seed), len(pixels), patches)
        return {"pixel_values": pixels, "masks": masks}

    logged, validation, micro = [], [], []

    def loss_sum(model, one):
        mean = loss(model, one)
        micro.append(mean.item())
        return mean * len(one["pixel_values"])

    def end_of_epoch(epoch, step):
        with torch.no_grad():
            losses = [loss(student, batch(i, seed)).item() for i, seed in enumerate(case["validation_mask_seeds"])]
        validation.append(sum(losses) / len(losses))

    steps = case["epochs"] * case["updates_per_epoch"]
    loop.fit(
        Accelerator(cpu=True), student,
        torch.optim.AdamW(student.parameters(), betas=case["betas"], weight_decay=case["weight_decay"]),
        Objective(loss_sum, lambda one: len(one["pixel_values"]), image_counts, "images"),
        epochs=[(e, [batch(i, s) for i, s in enumerate(seeds)]) for e, seeds in enumerate(case["mask_seeds"])],
        total_steps=steps, accumulation=case["grad_accum_steps"], max_grad_norm=case["clip_grad"], log=logged.append,
        rate_at=lambda i: optim.cosine_rate(i, peak=case["lr"], minimum=case["min_lr"], total_steps=steps),
        end_of_epoch=end_of_epoch,
    )  # fmt: skip
    assert [m["learning_rate"] for m in logged] == pytest.approx(case["lr_at_each_optimizer_step"], abs=1e-12)
    assert micro[1:] == pytest.approx(case["micro_batch_losses"], abs=2e-4)  # FLOPs were counted on the first
    assert validation == pytest.approx(case["validation_loss_after_epoch"], abs=2e-4)
    epochs = [[m["loss"] for m in logged if m["epoch"] == e] for e in range(case["epochs"])]
    sizes = [len(g) for g in batching.batched(range(case["batches_per_epoch"]), case["grad_accum_steps"])]
    means = [sum(a * b for a, b in zip(e, sizes, strict=True)) / sum(sizes) for e in epochs]
    assert means == pytest.approx(case["epoch_mean_loss"], abs=2e-4)
    parameters = dict(student.named_parameters())
    for key, value in strip(golden, f"{name}.final.").items():
        torch.testing.assert_close(parameters[key].detach(), value, atol=2e-3, rtol=0)
