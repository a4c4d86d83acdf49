"""Training a vision model on images: what align, mim and classify share around the one loop."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import nn

from prismatic.checkpoints.epoch import load_state, newest_state, save_state
from prismatic.checkpoints.run_folder import slower
from prismatic.checkpoints.writer import StopSignals
from prismatic.data import samplers
from prismatic.data.fingerprints import check_same, of_images
from prismatic.data.image_batches import Images
from prismatic.training import console as report
from prismatic.training import loop, optim, sharding
from prismatic.training.losses import Batch, Objective, image_counts, two_images
from prismatic.training.mixing import mixes
from prismatic.training.processes import on_main
from prismatic.training.tracking import MetricsLog, read_metrics
from vision_backbones import BackboneSpec
from vision_backbones.files import write_json
from vision_backbones.maskembed.teacher import merge_moments, moments

MAY_CHANGE = (
    "data.workers", "per_device_batch_size", "gradient_checkpointing", "compile", "save_every_steps", "trackers",
    "run_root", "learning_rate", "min_learning_rate", "max_grad_norm",
    "wandb.project", "wandb.entity", "wandb.name", "wandb.id",
)  # fmt: skip


def may_change(config) -> tuple[str, ...]:
    """Settings in which a run may differ from the unfinished one that it continues.

    Images are mixed within a micro-batch: its size then decides which.
    """
    return tuple(name for name in MAY_CHANGE if not (mixes(config) and name == "per_device_batch_size"))


@torch.no_grad()
def validate(images: Images, measure: Callable[[Batch], dict[str, torch.Tensor]]) -> dict[str, float]:
    """Means over all validation images and processes of what `measure` returns as means over a batch."""
    sums: dict[str, torch.Tensor] = {}
    seen = torch.zeros((), device=images.accelerator.device)
    with images.accelerator.autocast():
        for batch in images.validation_batches():
            count = len(batch["pixel_values"])
            seen += count
            for name, mean in measure(batch).items():
                sums[name] = sums.get(name, 0) + mean.float() * count
    seen = images.accelerator.reduce(seen, "sum").item()
    return {name: images.accelerator.reduce(value, "sum").item() / seen for name, value in sums.items()}


def target_variance(images: Images, targets: Callable[[Batch], torch.Tensor]) -> float:
    """Population variance of a teacher's targets over all validation images: the loss of predicting their mean.

    Raises:
        ValueError: a process has no validation image that can be read.
    """
    parts = [torch.zeros(3, dtype=torch.float64)]
    with images.accelerator.autocast():
        parts += [moments(targets(batch)) for batch in images.validation_batches()]
    mine = merge_moments(parts)
    gathered = images.accelerator.gather(mine.float().to(images.accelerator.device)[None])
    if not gathered[:, 0].all():
        raise ValueError(
            f"one process can read none of its validation images of {images.config.data.validation}: "
            "replace them, or add more"
        )
    return merge_moments(gathered.cpu().double())[2].item()


def with_drop_path(spec: BackboneSpec, rate: float) -> BackboneSpec:
    """The spec of a ViT whose blocks are left out by chance in training: from 0 in the first to `rate` in the last."""
    return replace(spec, arch_kwargs=spec.arch_kwargs | {"drop_path_rate": rate}) if rate else spec


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict]:
    """AdamW groups: one in which everything decays (as the paper has it), or vectors and biases spared."""
    if decay_all:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    return optim.parameter_groups(model.named_parameters(), weight_decay)


def train(
    config,
    run_dir: Path,
    images: Images,
    model: nn.Module,
    groups: list[dict],
    *,
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    measure: Callable[[nn.Module, Batch], dict[str, torch.Tensor]],
    best: tuple[str, Callable],
    export: Callable[[nn.Module, Path], None],
    extra: dict | None = None,
    draw: Callable[[Path], None] | None = None,
) -> dict:
    """Trains, validates every epoch, keeps the best and the last checkpoint, and continues an interrupted run.

    Args:
        config: an `ImageTrainingConfig`.
        run_dir: of the run.
        images: from `read_images`.
        model: what is trained, on its device.
        groups: parameter groups of AdamW.
        loss: mean loss of a model on a batch.
        measure: means over a validation batch, by name.
        best: which of those names decides what is best, and `min` or `max`.
        export: writes a model into a checkpoint folder.
        extra: more for the summary.
        draw: draws `patches.png` of the finished run, at the path that it gets.

    Returns:
        The content of `summary.json` on the main process, else an empty dict.
    """
    accelerator, started = images.accelerator, time.perf_counter()
    steps, _ = samplers.training_length(config.epochs, config.max_steps, images.steps_per_epoch)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)
    ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
    parts = {"model": model} | ({"ema": ema.module} if ema else {})
    done, best_value, name, better = 0, None, *best
    fingerprint = on_main(accelerator, lambda: of_images(images.train))
    if state := newest_state(run_dir, accelerator.print):
        progress = load_state(state, parts, optimizer)
        check_same(progress["data"], fingerprint, run_dir)
        done, best_value = progress["steps"], progress["best"]
        accelerator.print(f"continues from {state}, after step {done} of {steps}\n")
    result = ema.module if ema else model

    def evaluate() -> dict[str, float]:
        result.eval()
        means = validate(images, partial(measure, result))
        model.train()
        return means

    log = MetricsLog(accelerator, config, run_dir, done)
    if not done:
        log({"step": 0, "epoch": 0} | evaluate())

    signals, stopping = StopSignals(run_dir, accelerator), False

    def save(steps_done: int) -> None:
        sharding.check_finite(model, accelerator, steps_done, slower(run_dir))
        if accelerator.is_main_process:
            progress = {"steps": steps_done, "best": best_value, "data": fingerprint}
            save_state(run_dir, parts, optimizer, progress, partial(export, result))
        accelerator.wait_for_everyone()

    def after_step(steps_done: int, stop: bool) -> None:
        if ema:
            ema.update(model)
        ends_epoch = steps_done % images.steps_per_epoch == 0 or steps_done == steps  # which saves once it is validated
        nonlocal stopping
        stopping = stop
        if not ends_epoch and (stop or (config.save_every_steps and steps_done % config.save_every_steps == 0)):
            save(steps_done)
        if stop and not ends_epoch:
            signals.stop(steps_done)

    def end_of_epoch(epoch: int, steps_done: int) -> None:
        nonlocal best_value
        means = evaluate()
        if not all(map(math.isfinite, means.values())):
            raise FloatingPointError(
                f"validation gives {means} after step {steps_done}: its weights are not saved; {slower(run_dir)}"
            )
        log({"step": steps_done, "epoch": epoch} | means)
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in means.items())
        accelerator.print(f"\nepoch {epoch + 1}: {shown}")
        if best_value is None or better(means[name], best_value) != best_value:
            best_value = means[name]
            if accelerator.is_main_process:
                (run_dir / "checkpoints" / "best").mkdir(exist_ok=True)
                export(result, run_dir / "checkpoints" / "best")
        save(steps_done)
        if stopping and steps_done < steps:
            signals.stop(steps_done)

    def loss_sum(model: nn.Module, batch: Batch) -> torch.Tensor:
        count = len(batch["pixel_values"])
        return loss(model, batch if count else images.stand_in()) * count

    loop.fit(
        accelerator,
        accelerator.prepare_model(model) if accelerator.num_processes > 1 else model,
        optimizer,
        Objective(loss_sum, lambda batch: len(batch["pixel_values"]), image_counts, "images", sample=two_images),
        epochs=images.epochs(done),
        total_steps=steps,
        accumulation=images.accumulation,
        rate_at=partial(
            optim.cosine_rate,
            peak=config.learning_rate,
            minimum=config.min_learning_rate,
            total_steps=steps,
            warmup_steps=round(config.warmup_epochs * images.steps_per_epoch),
            warmup_from=config.warmup_learning_rate,
        ),
        max_grad_norm=config.max_grad_norm,
        log=log,
        end_of_epoch=end_of_epoch,
        after_step=after_step,
        should_stop=signals.should_stop,
        done_steps=done,
        seed=config.seed,
        matmul_peak=loop.matmul_peak(accelerator),
        remedy=slower(run_dir),
    )
    signals.close()
    if not accelerator.is_main_process:
        accelerator.end_training()
        return {}
    rows = read_metrics(run_dir / "metrics.jsonl")
    measured = [row for row in rows if name in row]
    summary = report.summarise(run_dir, time.perf_counter() - started, images.steps_per_epoch)
    summary |= {f"{key}_before": measured[0][key] for key in measured[0] if key not in ("step", "epoch")}
    summary |= {f"{key}_last": measured[-1][key] for key in measured[-1] if key not in ("step", "epoch")}
    summary |= {f"{name}_best": better(row[name] for row in measured[1:])}
    summary |= extra or {}
    write_json(run_dir / "summary.json", summary)
    if draw:
        draw(run_dir / "patches.png")
        log.picture("patches", run_dir / "patches.png", steps)
    accelerator.end_training()
    return summary
