"""Losses and accuracies of a vision backbone that is finetuned as an image classifier."""

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import nn

from prismatic.data.image_datasets import ImageSource
from prismatic.training import optim
from prismatic.training.losses import Batch
from prismatic.training.mixing import mix
from vision_backbones.classifier import layer_decay_groups


def common_classes(config, train: ImageSource, validation: ImageSource) -> list[str]:
    """The classes of the two splits that a `ClassifyConfig` names.

    Raises:
        ValueError: the splits have other classes, or none.
    """
    if train.classes != validation.classes:
        raise ValueError(
            f"{config.data.train} has {len(train.classes)} classes ({', '.join(train.classes[:3])}, ...), "
            f"{config.data.validation} has {len(validation.classes)}, and they or their order differ: give two splits "
            "of one data set"
        )
    for source in (train, validation):
        if not train.classes or source.label(0) < 0:
            raise ValueError(
                f"{source.name(0)} has no class: use a folder for each class, or .cls members in tar shards"
            )
    return train.classes


def parameter_groups(config, model: nn.Module) -> list[dict]:
    """AdamW groups of a `ClassifyConfig`: early blocks learn more slowly, if it says so."""
    if config.layer_decay:
        return layer_decay_groups(model, config.weight_decay, config.layer_decay)
    return optim.parameter_groups(model.named_parameters(), config.weight_decay)


class ClassificationLoss:
    """Mean cross-entropy of a model on a batch, with mixup, cutmix and label smoothing as a `ClassifyConfig` says."""

    def __init__(self, config, classes: int):
        self.smoothing, self.mixes = config.label_smoothing, bool(config.mixup or config.cutmix)
        self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss, with gradients."""
        pixels, labels = batch["pixel_values"], batch["labels"]
        if not self.mixes:
            return F.cross_entropy(model(pixels).float(), labels, label_smoothing=self.smoothing)
        pixels, targets = mix(self.mixup, pixels, labels)
        return F.cross_entropy(model(pixels).float(), targets)


def measure(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Means over a batch: cross-entropy, and how often the right class is the first or, of more than five, in five."""
    logits, labels = model(batch["pixel_values"]).float(), batch["labels"]
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    means = {"validation_loss": F.cross_entropy(logits, labels), "top1": (ranks < 1).float().mean()}
    return means | ({"top5": (ranks < 5).float().mean()} if logits.shape[1] > 5 else {})
