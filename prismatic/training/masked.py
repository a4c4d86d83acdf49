"""Training on masked images against a frozen teacher: what locality alignment and masked image modelling share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from prismatic.data import image_batches
from prismatic.models import stages
from prismatic.training import console, vision
from prismatic.training.losses import Batch
from prismatic.training.mixing import image_mixer
from vision_backbones import BackboneSpec, import_plugins
from vision_backbones.maskembed.loss import check_loss
from vision_backbones.maskembed.packed import pack_linear
from vision_backbones.maskembed.pairing import check_pair, mask_sampler
from vision_backbones.maskembed.teacher import Teacher, unit_scale
from vision_backbones.soft_cap import SoftCapAttention


@dataclass(frozen=True)
class Pair:
    """What teaches, what learns, and how images are masked."""

    teacher: BackboneSpec
    student: BackboneSpec
    masks: Callable


def check(
    config, accelerator: Accelerator, made: str, build: Callable[[Pair, bool], tuple[nn.Module, nn.Module]]
) -> tuple[Pair, image_batches.Images]:
    """What a run trains on, once all is checked that needs no weights.

    Args:
        config: a `MaskedTrainingConfig`.
        accelerator: of the run.
        made: "aligned" or "mim", what the student's id ends in.
        build: gives teacher and student of a pair, with their weights or new ones.

    Raises:
        ValueError: a backbone, the loss or the masks are unknown or do not fit together, or images are not there.
    """
    import_plugins(config.plugins)
    teacher, student = check_pair(config.teacher, config.student, config.soft_cap, made, config.image_size)
    check_loss(config.loss, prefix_only=getattr(config, "prefix_only", False))
    pair = Pair(teacher, student, mask_sampler(student, as_reference=config.as_reference, **vars(config.masks)))
    data = image_batches.read_images(config, accelerator, student, pair.masks)
    with torch.device("meta"):
        build(pair, False)
    return pair, data


def start(config, accelerator: Accelerator, pair: Pair, build: Callable) -> tuple[Teacher, nn.Module]:
    """Teacher and student with their weights, on their device; prints their sizes."""
    set_seed(config.seed)
    teacher, student = build(pair, True)
    if config.precision == "bf16":
        stages.halve_frozen(teacher)
    teacher.to(accelerator.device), student.to(accelerator.device)
    parts = {name: getattr(student, name) for name in ("encoder", "decoder") if hasattr(student, name)}
    title = f"{pair.teacher.id} -> {pair.student.id}, {config.loss}"
    console.print_parts(accelerator, title, console.parameters(**parts, teacher=teacher))
    if config.gradient_checkpointing:
        student.set_grad_checkpointing()
    if config.compile:
        compile_blocks(teacher, student)
    elif accelerator.device.type == "cpu":
        pack_linear(teacher)
    return teacher, student


def compile_blocks(*models: nn.Module) -> None:
    """Compiles every block of ViTs and decoders when it is first called; soft-capped ones use FlexAttention on CUDA."""
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, SoftCapAttention):
            module.flex = True
        for block in getattr(module, "blocks", ()):
            block.compile()


def train(
    config,
    run_dir: Path,
    data: image_batches.Images,
    teacher: Teacher,
    student: nn.Module,
    *,
    targets: Callable[[Batch], torch.Tensor],
    loss: Callable[[nn.Module, Batch, bool], torch.Tensor],
    export: Callable[[nn.Module, Path], None],
    draw: Callable[[Path], None] | None = None,
) -> dict:
    """Trains the student; the best is that of the smallest validation loss.

    Args:
        config: a `MaskedTrainingConfig`.
        run_dir: of the run.
        data: images and masks.
        teacher: its targets get unit variance if the loss is mse: predicting their mean would then give 1.
        student: what is trained.
        targets: the teacher's of a batch, before they are repeated for each mask.
        loss: of the student on a batch, and whether that is in training, where images are mixed before.
        export: writes the student's backbone into a folder.
        draw: draws the finished run's `patches.png`, if given.

    Returns:
        The content of `summary.json` on the main process, else an empty dict.
    """
    variance, mixed = vision.target_variance(data, targets), image_mixer(config)
    if config.loss == "mse":
        teacher.scale.fill_(unit_scale(variance))
    return vision.train(
        config,
        run_dir,
        data,
        student,
        vision.parameter_groups(student, config.weight_decay, config.decay_all),
        loss=lambda model, batch: loss(model, mixed(batch), True),
        measure=lambda model, batch: {"validation_loss": loss(model, batch, False)},
        best=("validation_loss", min),
        export=export,
        extra={"baseline_loss": 1.0 if config.loss == "mse" else None, "teacher_variance": variance},
        draw=draw,
    )
