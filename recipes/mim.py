"""Masked image modelling: the student sees masked images and predicts a frozen teacher's tokens of whole ones.

`accelerate launch recipes/mim.py` alone runs the miniature world on a laptop; `--help` lists every setting. The run
folder is a backbone, for instance to align: `recipes/align.py --student runs/NAME`.
"""

from prismatic.checkpoints.lock import releases
from recipes import command
from recipes.config.images import MimConfig, parse_mim


@releases
def main(config: MimConfig) -> dict:
    """Runs the training and gives the content of `summary.json` (on the main process)."""
    from pathlib import Path

    import torch
    from accelerate.utils import set_seed

    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import console as report
    from prismatic.training import loop, optim
    from prismatic.training import vision as images
    from vision_backbones import import_plugins
    from vision_backbones.maskembed.loss import check_loss, reconstruction_loss
    from vision_backbones.maskembed.pairing import check_pair, mask_sampler
    from vision_backbones.maskembed.student import MaskedImageStudent
    from vision_backbones.maskembed.teacher import Teacher, unit_scale
    from vision_backbones.vit import load_vit
    from vision_backbones.weights import save_backbone

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    teacher_spec, student_spec = check_pair(config.teacher, config.student, config.soft_cap, "mim")
    check_loss(config.loss, prefix_only=False)
    masks = mask_sampler(student_spec, as_reference=config.as_reference, **vars(config.masks))
    data = images.read_images(config, accelerator, student_spec, masks)

    def make(pretrained: bool) -> tuple[Teacher, MaskedImageStudent]:
        teacher = Teacher(load_vit(teacher_spec, pretrained=pretrained), skip_blocks=0)
        vit = load_vit(student_spec, pretrained=pretrained)
        head = {"head": config.student_head, "as_reference": config.as_reference}
        return teacher, MaskedImageStudent(vit, teacher.vit.embed_dim, **head)

    with torch.device("meta"):
        make(pretrained=False)
    run_dir = open_run(config, accelerator, f"{config.teacher}+mim", images.MAY_CHANGE)

    if summary := finished_run(run_dir, accelerator):
        return summary
    set_seed(config.seed)
    teacher, student = make(pretrained=True)
    if config.precision == "bf16":
        optim.halve_frozen(teacher)
    teacher.to(accelerator.device), student.to(accelerator.device)
    parts = report.parameters(student=student, teacher=teacher)
    report.print_parts(accelerator, f"{teacher_spec.id} -> {student_spec.id}, {config.loss}", parts)

    # The loss is mse on targets of variance 1: predicting their mean would give 1.
    variance = images.target_variance(data, lambda batch: teacher(batch["pixel_values"]))
    if config.loss == "mse":
        teacher.scale.fill_(unit_scale(variance))

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        rows = len(batch["masks"]) // len(batch["pixel_values"])
        target = teacher(batch["pixel_values"]).repeat_interleave(rows, dim=0)
        return reconstruction_loss(model(batch["pixel_values"], batch["masks"]), target, batch["masks"], config.loss)

    def export(model: MaskedImageStudent, folder: Path) -> None:
        save_backbone(folder / "backbone.safetensors", model.encoder.state_dict(), student_spec)

    summary = images.train(
        config,
        run_dir,
        data,
        student,
        images.parameter_groups(student, config.weight_decay, config.decay_all),
        loss=loss,
        measure=lambda model, batch: {"validation_loss": loss(model, batch)},
        best=("validation_loss", min),
        export=export,
        extra={"baseline_loss": 1.0 if config.loss == "mse" else None, "teacher_variance": variance},
    )
    if summary:
        report.print_summary(
            run_dir, summary, f"python recipes/align.py --teacher {config.teacher} --student {run_dir}"
        )
    return summary


if __name__ == "__main__":
    command.run(main, parse_mim)
