"""Locality alignment: teaches a vision backbone what is where, by MaskEmbed post-training.

`accelerate launch recipes/align.py` alone runs the miniature world on a laptop; `--help` lists every setting. The run
folder is a backbone: `--vision_backbone runs/NAME`.
"""

from prismatic.checkpoints.lock import releases
from recipes import command
from recipes.config.images import AlignConfig, parse_align


@releases
def main(config: AlignConfig) -> dict:
    """Runs the alignment and gives the content of `summary.json` (on the main process)."""
    from pathlib import Path

    import torch
    from accelerate.utils import set_seed

    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import console as report
    from prismatic.training import loop, optim
    from prismatic.training import vision as images
    from prismatic.training.plots import draw_patches
    from vision_backbones import create_backbone, import_plugins
    from vision_backbones.maskembed.loss import check_loss, reconstruction_loss
    from vision_backbones.maskembed.pairing import check_pair, mask_sampler
    from vision_backbones.maskembed.student import MaskEmbedStudent
    from vision_backbones.maskembed.teacher import Teacher, unit_scale
    from vision_backbones.vit import load_vit
    from vision_backbones.weights import save_backbone

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    teacher_spec, student_spec = check_pair(config.teacher, config.student, config.soft_cap)
    check_loss(config.loss, prefix_only=config.prefix_only)
    masks = mask_sampler(student_spec, as_reference=config.as_reference, **vars(config.masks))
    data = images.read_images(config, accelerator, student_spec, masks)

    def make(pretrained: bool) -> tuple[Teacher, MaskEmbedStudent]:
        teacher = Teacher(
            load_vit(teacher_spec, pretrained=pretrained),
            skip_blocks=config.teacher_skip_blocks,
            prefix_only=config.prefix_only,
        )
        student = MaskEmbedStudent(
            load_vit(student_spec, pretrained=pretrained),
            teacher.vit.embed_dim,
            head=config.student_head,
            decoder_blocks=config.decoder_blocks,
            decoder_width=config.decoder_width,
            decoder_heads=config.decoder_heads,
            prefix_only=config.prefix_only,
            as_reference=config.as_reference,
        )
        return teacher, student

    with torch.device("meta"):
        make(pretrained=False)
    run_dir = open_run(config, accelerator, f"{config.model or config.teacher}+align", images.MAY_CHANGE)

    if summary := finished_run(run_dir, accelerator):
        return summary
    set_seed(config.seed)
    teacher, student = make(pretrained=True)
    if config.precision == "bf16":
        optim.halve_frozen(teacher)
    teacher.to(accelerator.device), student.to(accelerator.device)
    parts = report.parameters(encoder=student.encoder, decoder=student.decoder, teacher=teacher)
    report.print_parts(accelerator, f"{teacher_spec.id} -> {student_spec.id}, {config.loss}", parts)

    # The loss is mse on targets of variance 1: predicting their mean would give 1.
    variance = images.target_variance(data, lambda batch: teacher(batch["pixel_values"], batch["masks"]))
    if config.loss == "mse":
        teacher.scale.fill_(unit_scale(variance))

    def loss(model: torch.nn.Module, batch: dict, training: bool = True) -> torch.Tensor:
        target = teacher(batch["pixel_values"], batch["masks"])
        return reconstruction_loss(
            model(batch["pixel_values"], batch["masks"]),
            target,
            batch["masks"],
            config.loss,
            masked_prefix=config.as_reference and training,
            pair_all=config.as_reference and config.prefix_only,
        )

    def export(model: MaskEmbedStudent, folder: Path) -> None:
        state = model.state_dict()
        decoder = {k: v for k, v in state.items() if k.startswith(("decoder.", "encoder.head."))}
        encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        heads = config.decoder_heads or model.encoder.blocks[0].attn.num_heads
        save_backbone(folder / "backbone.safetensors", encoder, student_spec, decoder, heads)

    summary = images.train(
        config,
        run_dir,
        data,
        student,
        images.parameter_groups(student, config.weight_decay, config.decay_all),
        loss=loss,
        measure=lambda model, batch: {"validation_loss": loss(model, batch, training=False)},
        best=("validation_loss", min),
        export=export,
        extra={"baseline_loss": 1.0 if config.loss == "mse" else None, "teacher_variance": variance},
    )
    if summary:
        pictured = {"before": create_backbone(teacher_spec), "after": create_backbone(str(run_dir))}
        draw_patches(run_dir / "patches.png", data.validation, pictured)
        report.print_summary(run_dir, summary, f"python recipes/finetune.py --vision_backbone {run_dir} ...")
    return summary


if __name__ == "__main__":
    command.run(main, parse_align)
