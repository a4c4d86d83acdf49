"""Finetunes a vision backbone as an image classifier, for instance an aligned one on ImageNet.

`accelerate launch recipes/classify.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

from prismatic.checkpoints.lock import releases
from prismatic.data import image_batches
from recipes import cli
from recipes.config.images import ClassifyConfig, parse_classify


@releases
def main(config: ClassifyConfig) -> dict:
    """Runs the finetune and returns the content of `summary.json` (on the main process)."""
    import torch
    from accelerate.utils import set_seed

    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import classification, console, loop, vision
    from vision_backbones import check_spec, import_plugins
    from vision_backbones.classifier import build_classifier, freeze_backbone, save_classifier

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    spec = check_spec(config.vision_backbone, image_size=config.image_size)
    data = image_batches.read_images(config, accelerator, spec)
    classes = classification.common_classes(config, data.train, data.validation)
    trained = vision.with_drop_path(spec, config.drop_path)
    with torch.device("meta"):
        build_classifier(trained, config.head, len(classes), pretrained=False)
    run_dir = open_run(
        config, accelerator, f"{config.model or config.vision_backbone}+classify", vision.may_change(config)
    )
    if summary := finished_run(run_dir, accelerator):
        return summary

    set_seed(config.seed)
    model = build_classifier(trained, config.head, len(classes), config.pretrained).to(accelerator.device)
    if config.freeze_backbone:
        freeze_backbone(model)
    title = f"{spec.id}, {config.head} head, {len(classes)} classes"
    console.print_parts(accelerator, title, console.parameters(classifier=model))
    summary = vision.train(
        config, run_dir, data, model, classification.parameter_groups(config, model),
        loss=classification.ClassificationLoss(config, len(classes)), measure=classification.measure,
        best=("top1", max),
        export=lambda model, folder: save_classifier(
            folder / "classifier.safetensors", model, spec, config.head, classes
        ),
    )  # fmt: skip
    if summary:
        use = f"from vision_backbones.classifier import load_classifier; model, classes = load_classifier('{run_dir}')"
        console.print_summary(run_dir, summary, f'python -c "{use}"')
    return summary


if __name__ == "__main__":
    cli.run(main, parse_classify)
