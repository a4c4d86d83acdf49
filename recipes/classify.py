"""Finetunes a vision backbone as an image classifier, for instance an aligned one on ImageNet.

`accelerate launch recipes/classify.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

from prismatic.checkpoints.lock import releases
from recipes import command
from recipes.config.images import ClassifyConfig, parse_classify


@releases
def main(config: ClassifyConfig) -> dict:
    """Runs the finetune and gives the content of `summary.json` (on the main process)."""
    import torch
    import torch.nn.functional as F
    from accelerate.utils import set_seed
    from timm.data import Mixup

    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.training import console as report
    from prismatic.training import loop, optim
    from prismatic.training import vision as images
    from vision_backbones import check_spec, import_plugins
    from vision_backbones.classifier import build_classifier, layer_decay_groups, mix, save_classifier

    accelerator = loop.launch(config.precision, config.trackers, config.run_root)

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    spec = check_spec(config.vision_backbone)
    data = images.read_images(config, accelerator, spec)
    classes = data.train.classes
    if classes != data.validation.classes:
        raise ValueError(
            f"{config.data.train} has {len(classes)} classes ({', '.join(classes[:3])}, ...), {config.data.validation} "
            f"has {len(data.validation.classes)} others or in another order: give two splits of one set"
        )
    for source in (data.train, data.validation):
        if not classes or source.label(0) < 0:
            raise ValueError(
                f"{source.name(0)} has no class: use a folder for each class, or .cls members in tar shards"
            )
    with torch.device("meta"):
        build_classifier(spec, config.head, len(classes), pretrained=False)
    run_dir = open_run(config, accelerator, f"{config.vision_backbone}+classify", images.MAY_CHANGE)

    if summary := finished_run(run_dir, accelerator):
        return summary
    set_seed(config.seed)
    model = build_classifier(spec, config.head, len(classes), pretrained=True).to(accelerator.device)
    title = f"{spec.id}, {config.head} head, {len(classes)} classes"
    report.print_parts(accelerator, title, report.parameters(classifier=model))
    if config.layer_decay:
        groups = layer_decay_groups(model, config.weight_decay, config.layer_decay)
    else:
        groups = optim.parameter_groups(model.named_parameters(), config.weight_decay)
    mixes = bool(config.mixup or config.cutmix)
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=len(classes))

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        pixels, labels = batch["pixel_values"], batch["labels"]
        if not mixes:
            return F.cross_entropy(model(pixels).float(), labels, label_smoothing=config.label_smoothing)
        pixels, targets = mix(mixup, pixels, labels)
        return F.cross_entropy(model(pixels).float(), targets)

    def measure(model: torch.nn.Module, batch: dict) -> dict[str, torch.Tensor]:
        logits, labels = model(batch["pixel_values"]).float(), batch["labels"]
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
        means = {"validation_loss": F.cross_entropy(logits, labels), "top1": (ranks < 1).float().mean()}
        return means | ({"top5": (ranks < 5).float().mean()} if len(classes) > 5 else {})

    summary = images.train(
        config,
        run_dir,
        data,
        model,
        groups,
        loss=loss,
        measure=measure,
        best=("top1", max),
        export=lambda model, folder: save_classifier(
            folder / "classifier.safetensors", model, spec, config.head, classes
        ),
    )
    if summary:
        use = f"from vision_backbones.classifier import load_classifier; model, classes = load_classifier('{run_dir}')"
        report.print_summary(run_dir, summary, f'python -c "{use}"')
    return summary


if __name__ == "__main__":
    command.run(main, parse_classify)
