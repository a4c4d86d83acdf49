"""The images of a run that trains on images alone, and how a process batches them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from prismatic.data import batching, samplers
from prismatic.data.image_datasets import ImageSource, open_images
from prismatic.data.images import TrainingImages, collate_images, evaluation_transform, training_transform
from vision_backbones import BackboneSpec


@dataclass(frozen=True)
class Images:
    """Training and validation images of a run, and how this process batches them."""

    config: object
    accelerator: Accelerator
    train: ImageSource
    validation: ImageSource
    spec: BackboneSpec
    augmentation: Callable
    masks: Callable | None
    per_device: int
    accumulation: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last global batch is filled up from the epoch's start."""
        return -(-len(self.train) // self.config.global_batch_size)

    def epochs(self, done_steps: int = 0) -> Iterator[tuple[int, DataLoader]]:
        """Number of each epoch and its micro-batches, without those of the first `done_steps` optimizer steps."""
        config, data = self.config, self.config.data

        def plan(epoch: int) -> list:
            rows = samplers.fill_batches(self.train.order((config.seed, epoch)), config.global_batch_size)
            world, rank = self.accelerator.num_processes, self.accelerator.process_index
            return samplers.micro_batches(rows, rank, world, config.global_batch_size, self.per_device)

        yield from batching.epoch_loaders(
            lambda epoch: self._examples(self.train, self.augmentation, epoch),
            collate_images,
            plan,
            samplers.training_length(config.epochs, config.max_steps, self.steps_per_epoch)[1],
            data.workers,
            config.seed,
            done=done_steps * self.accumulation,
        )

    def validation_batches(self) -> Iterator[dict[str, Any]]:
        """This process's part of the validation images, on its device, with the same masks every time."""
        mine = range(self.accelerator.process_index, len(self.validation), self.accelerator.num_processes)
        rows = [mine[i : i + self.per_device] for i in range(0, len(mine), self.per_device)]
        loader = DataLoader(
            self._examples(self.validation, evaluation_transform(self.spec), epoch=0),
            batch_sampler=rows,
            collate_fn=collate_images,
            num_workers=self.config.data.workers,
            generator=torch.Generator(),
        )
        bar = tqdm(loader, desc="validation", leave=False, disable=not self.accelerator.is_main_process)
        for batch in bar:
            if len(batch["pixel_values"]):
                yield batching.to_device(batch, self.accelerator.device)

    def stand_in(self) -> dict[str, Any]:
        """A batch of one black image for a process that could read none: the others wait for it."""
        masks = self.masks(np.random.default_rng(0)) if self.masks else torch.zeros(0, 0, dtype=torch.bool)
        pixels = torch.zeros(1, 3, self.spec.image_size, self.spec.image_size)
        batch = {"pixel_values": pixels, "labels": torch.zeros(1, dtype=torch.long), "masks": masks}
        return batching.to_device(batch, self.accelerator.device)

    def _examples(self, source: ImageSource, transform: Callable, epoch: int) -> TrainingImages:
        config = self.config
        return TrainingImages(
            source, transform, seed=config.seed, epoch=epoch, masks=self.masks, on_bad_image=config.data.on_bad_image
        )


def read_images(config, accelerator: Accelerator, spec: BackboneSpec, masks: Callable | None = None) -> Images:
    """Opens the images of a run; nothing is decoded yet.

    Raises:
        ValueError: nothing is there, the processes cannot share the global batch, or timm has no such augmentation.
    """
    world, given = accelerator.num_processes, config.data
    if given.validation_crop is not None:
        spec = replace(spec, crop_pct=given.validation_crop)
    augmentation = training_transform(
        spec,
        crop_mode=given.crop_mode,
        scale=given.crop_scale,
        ratio=given.crop_ratio,
        hflip=given.horizontal_flip,
        auto_augment=given.auto_augment,
        color_jitter=given.color_jitter,
        random_erasing=given.random_erasing,
        interpolation=given.interpolation,
    )
    per_device, accumulation = samplers.share_batch(config.global_batch_size, world, config.per_device_batch_size)
    train, validation = open_images(given.train), open_images(given.validation)
    if len(validation) < world:
        raise ValueError(f"{given.validation} holds {len(validation)} images for {world} processes: give more")
    return Images(config, accelerator, train, validation, spec, augmentation, masks, per_device, accumulation)
