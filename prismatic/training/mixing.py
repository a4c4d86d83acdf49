"""Mixup and cutmix: images of a batch that are blended, or pasted into each other."""

from collections.abc import Callable

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target

from prismatic.training.losses import Batch


def mixes(config) -> bool:
    """Whether images are mixed."""
    return bool(config.mixup or config.cutmix)


def mix(mixup: Mixup, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed pixels `[B, 3, H, W]` and soft targets `[B, classes]`, by timm's `Mixup`.

    What is drawn depends on torch's random state alone. An odd batch leaves its last image as it is, since timm mixes
    pairs.
    """
    state = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    even = len(labels) // 2 * 2
    try:
        mixed, targets = mixup(pixels[:even].clone(), labels[:even])
    finally:
        np.random.set_state(state)
    rest = mixup_target(labels[even:], mixup.num_classes, 1.0, mixup.label_smoothing)
    return torch.cat([mixed, pixels[even:]]), torch.cat([targets, rest.to(targets.device)])


def image_mixer(config) -> Callable[[Batch], Batch]:
    """A function that mixes the images of a batch as an `ImageTrainingConfig` says, where they need no labels."""
    if not mixes(config):
        return lambda batch: batch
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=1)

    def mixed(batch: Batch) -> Batch:
        pixels = batch["pixel_values"]
        unlabelled = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        return batch | {"pixel_values": mix(mixup, pixels, unlabelled)[0]}

    return mixed
