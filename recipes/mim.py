"""Masked image modelling: the student sees masked images and predicts a frozen teacher's tokens of whole ones.

`accelerate launch recipes/mim.py` alone runs the miniature world on a laptop; `--help` lists every setting. The run
folder is a backbone, for instance to align: `recipes/align.py --student runs/NAME`.
"""

from functools import partial

from prismatic.checkpoints.lock import releases
from recipes import cli
from recipes.config.images import MimConfig, parse_mim


@releases
def main(config: MimConfig) -> dict:
    """Runs the training and returns the content of `summary.json` (on the main process)."""
    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import console, loop, masked, vision
    from vision_backbones.backbone_files import save_backbone

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)
    pair, data = masked.check(config, accelerator, "mim", partial(build, config))
    run_dir = open_run(config, accelerator, f"{config.model or config.teacher}+mim", vision.may_change(config))
    if summary := finished_run(run_dir, accelerator):
        return summary

    teacher, student = masked.start(config, accelerator, pair, partial(build, config))
    summary = masked.train(
        config, run_dir, data, teacher, student,
        targets=lambda batch: teacher(batch["pixel_values"]), loss=partial(prediction_loss, config, teacher),
        export=lambda model, folder: save_backbone(
            folder / "backbone.safetensors", model.encoder.state_dict(), pair.student
        ),
    )  # fmt: skip
    if summary:
        size = f" --image_size {config.image_size}" if config.image_size else ""
        use = f"python recipes/align.py --teacher {config.teacher} --student {run_dir}{size}"
        console.print_summary(run_dir, summary, use)
    return summary


def build(config: MimConfig, pair, pretrained: bool) -> tuple:
    """The frozen teacher, and the student, which has its channels."""
    from prismatic.training.vision import with_drop_path
    from vision_backbones.maskembed.student import MaskedImageStudent
    from vision_backbones.maskembed.teacher import Teacher
    from vision_backbones.vit import load_vit

    teacher = Teacher(load_vit(pair.teacher, pretrained=pretrained), skip_blocks=0)
    vit = load_vit(with_drop_path(pair.student, config.drop_path), pretrained=pretrained and config.pretrained)
    return teacher, MaskedImageStudent(
        vit, teacher.vit.embed_dim, head=config.student_head, as_reference=config.as_reference
    )


def prediction_loss(config: MimConfig, teacher, student, batch: dict, training: bool):
    """How far the student's predictions from masked images are from what the teacher sees of whole ones."""
    from vision_backbones.maskembed.loss import reconstruction_loss

    pixels, masks = batch["pixel_values"], batch["masks"]
    targets = teacher(pixels).repeat_interleave(len(masks) // len(pixels), dim=0)
    return reconstruction_loss(student(pixels, masks), targets, masks, config.loss)


if __name__ == "__main__":
    cli.run(main, parse_mim)
