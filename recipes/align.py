"""Locality alignment: teaches a vision backbone what is where, by MaskEmbed post-training.

`accelerate launch recipes/align.py` alone runs the miniature world on a laptop; `--help` lists every setting. Use the
run folder directly as a backbone: `--vision_backbone runs/NAME`.
"""

from functools import partial

from prismatic.checkpoints.lock import releases
from recipes import cli
from recipes.config.images import AlignConfig, parse_align


@releases
def main(config: AlignConfig) -> dict:
    """Runs the alignment and returns the content of `summary.json` (on the main process)."""
    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import console, loop, masked, vision
    from prismatic.training.plots import draw_patches
    from vision_backbones import create_backbone

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)
    pair, data = masked.check(config, accelerator, "aligned", partial(build, config))
    run_dir = open_run(config, accelerator, f"{config.model or config.teacher}+align", vision.may_change(config))
    if summary := finished_run(run_dir, accelerator):
        return summary

    teacher, student = masked.start(config, accelerator, pair, partial(build, config))
    summary = masked.train(
        config, run_dir, data, teacher, student,
        targets=lambda batch: teacher(batch["pixel_values"], batch["masks"]),
        loss=partial(alignment_loss, config, teacher), export=partial(export, config, pair.student, teacher),
        draw=lambda path: draw_patches(path, data.validation, {
            "before": create_backbone(pair.teacher), "after": create_backbone(str(run_dir)),
        }),
    )  # fmt: skip
    if summary:
        console.print_summary(run_dir, summary, f"prismatic finetune --vision_backbone {run_dir} ...")
    return summary


def build(config: AlignConfig, pair, pretrained: bool) -> tuple:
    """The frozen teacher, and the student with its decoder."""
    from prismatic.training.vision import with_drop_path
    from vision_backbones.maskembed.student import MaskEmbedStudent
    from vision_backbones.maskembed.teacher import Teacher
    from vision_backbones.vit import load_vit

    same = {"prefix_only": config.prefix_only}
    teacher = Teacher(load_vit(pair.teacher, pretrained=pretrained), skip_blocks=config.teacher_skip_blocks, **same)
    vit = load_vit(with_drop_path(pair.student, config.drop_path), pretrained=pretrained and config.pretrained)
    student = MaskEmbedStudent(
        vit, teacher.vit.embed_dim, head=config.student_head,
        decoder_blocks=config.decoder_blocks, decoder_width=config.decoder_width, decoder_heads=config.decoder_heads,
        decoder_qk_norm=config.decoder_qk_norm, decoder_qkv_bias=config.decoder_qkv_bias,
        as_reference=config.as_reference, **same,
    )  # fmt: skip
    return teacher, student


def alignment_loss(config: AlignConfig, teacher, student, batch: dict, training: bool):
    """How far the student's reconstructions are from what the teacher sees of the same masked images."""
    from vision_backbones.maskembed.loss import reconstruction_loss
    from vision_backbones.maskembed.reference_quirks import loss_options

    pixels, masks = batch["pixel_values"], batch["masks"]
    quirks = loss_options(prefix_only=config.prefix_only, training=training) if config.as_reference else {}
    return reconstruction_loss(student(pixels, masks), teacher(pixels, masks), masks, config.loss, **quirks)


def export(config: AlignConfig, spec, teacher, model, folder) -> None:
    """Writes the encoder as a backbone, with the decoder, which a projector may start from."""
    from dataclasses import asdict

    from vision_backbones.backbone_files import save_backbone
    from vision_backbones.maskembed.view import Alignment

    state = model.state_dict()
    decoder = {k: v for k, v in state.items() if k.startswith(("decoder.", "encoder.head."))}
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    heads = config.decoder_heads or model.encoder.blocks[0].attn.num_heads
    scale, same = teacher.scale.item(), {"prefix_only": config.prefix_only, "as_reference": config.as_reference}
    alignment = Alignment(config.teacher, config.teacher_skip_blocks, scale, config.loss, **same)
    save_backbone(folder / "backbone.safetensors", encoder, spec, decoder, heads, asdict(alignment))


if __name__ == "__main__":
    cli.run(main, parse_align)
