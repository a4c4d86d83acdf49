"""Images as a vision backbone is trained on them: augmented, with masks, the same however the run is spread."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from prismatic.data.conversation_dataset import BadImageError
from prismatic.data.image_datasets import ImageSource, open_images
from vision_backbones.names import suggest
from vision_backbones.registry import resolve_spec
from vision_backbones.spec import BackboneSpec
from vision_backbones.transforms import image_transform

__all__ = ["TrainingImages", "collate_images", "evaluation_transform", "open_images", "training_transform"]

CROP_MODES = ("rkrc", "rkrr", "rrc", "none")

Transform = Callable[[Image.Image], Tensor]


class TrainingImages(Dataset):
    """Transformed images with masks, decoded where they are asked for (in a `DataLoader`'s workers).

    `examples[row]` gives `{"pixel_values": float32 [3, H, W], "label": int, "masks": bool [R, N]}`, the last
    only with `masks`, or None for a bad image that is to be skipped. It is a pure function of seed, epoch and row:
    neither workers nor processes nor a resumed run change it, and the caller's random numbers stay as they are.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        *,
        seed: int,
        epoch: int = 0,
        masks: Callable[[np.random.Generator], Tensor] | None = None,
        on_bad_image: str = "error",
    ):
        """Joins images, transform and masks.

        Args:
            source: from `open_images`.
            transform: gives pixels [3, H, W]; it may draw from `random`, numpy's global generator and torch's.
            seed: of the whole run, not negative.
            epoch: number of the epoch, from 0.
            masks: gives the masks of one image, bool [R, N], from a generator of its own.
            on_bad_image: "error" stops at an unreadable image, "skip" leaves it out.

        Raises:
            ValueError: `on_bad_image` is neither.
        """
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"on_bad_image is {on_bad_image!r}; expected 'error' or 'skip'")
        self.source, self.transform, self.masks, self.on_bad_image = source, transform, masks, on_bad_image
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        try:
            image, label = self.source[row]
        except BadImageError:
            if self.on_bad_image == "error":
                raise
            return None
        rng = np.random.default_rng((self.seed, self.epoch, row))
        with _global_seed(int(rng.integers(2**32))):
            example = {"pixel_values": self.transform(image), "label": label}
        return example if self.masks is None else example | {"masks": self.masks(rng)}


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every accelerator
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def collate_images(items: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Joins examples of `TrainingImages` into a batch.

    Returns:
        `pixel_values` float32 [B, 3, H, W]; `labels` int64 [B]; `masks` bool [B * R, N], the rows of an image
        consecutive, or [0, 0] without any; `skipped`, the number of items that were None. Where nothing is left,
        `pixel_values` is [0, 3, 0, 0].
    """
    kept = [item for item in items if item is not None]
    masks = [item["masks"] for item in kept if "masks" in item]
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in kept]) if kept else torch.zeros(0, 3, 0, 0),
        "labels": torch.tensor([item["label"] for item in kept], dtype=torch.long),
        "masks": torch.cat(masks) if masks else torch.zeros(0, 0, dtype=torch.bool),
        "skipped": len(items) - len(kept),
    }


def training_transform(
    spec: BackboneSpec | str,
    *,
    crop_mode: str = "rkrc",
    scale: Sequence[float] = (),
    ratio: Sequence[float] = (),
    hflip: float = 0.5,
    auto_augment: str | None = None,
    color_jitter: float | None = None,
    random_erasing: float = 0.0,
    interpolation: str | None = None,
) -> Transform:
    """Returns timm's training augmentation at the backbone's size and normalisation.

    Args:
        spec: of a single ViT, or its id.
        crop_mode: "rkrc" keeps the aspect ratio but for small random changes of it and of scale, and crops the centre;
            "rkrr" crops anywhere; "rrc" is Inception's random resized crop; "none" is `evaluation_transform`.
        scale: least and greatest area of a crop, as a share of the image's, or with "rkrc" and "rkrr" of the largest
            centred square's, which half of the images keep; timm's for the crop mode if empty. Not used with "none".
        ratio: likewise, the change of the aspect ratio.
        hflip: probability of a horizontal flip; not used with "none".
        auto_augment: timm's notation of a policy, such as "rand-m9-mstd0.5-inc1".
        color_jitter: how much brightness, contrast and saturation vary. With a policy other than "3a" timm leaves it
            out.
        random_erasing: probability that a rectangle of 2 % to a third of the pixels is replaced by normal noise.
        interpolation: "bicubic", "bilinear" or "random", one of the two each time; the backbone's if None.

    Returns:
        A callable from an RGB image to normalised pixels [3, H, W], float32.

    Raises:
        ValueError: an unknown crop mode or policy, another augmentation without cropping, or a fused backbone.
    """
    from timm.data import create_transform

    if crop_mode not in CROP_MODES:
        raise ValueError(f"unknown crop mode {crop_mode!r}: {suggest(crop_mode, CROP_MODES)}")
    if crop_mode == "none":
        others = {"auto_augment": auto_augment, "color_jitter": color_jitter, "random_erasing": random_erasing}
        others |= {"crop_scale": scale, "crop_ratio": ratio, "interpolation": interpolation}
        if given := next((name for name in others if others[name]), None):
            raise ValueError(f"crop mode 'none' leaves images as they are; {given} is {others[given]!r}: drop one")
        return evaluation_transform(spec)
    spec = _single(spec)
    try:
        return create_transform(
            spec.image_size,
            is_training=True,
            train_crop_mode=crop_mode,
            scale=tuple(scale) or None,
            ratio=tuple(ratio) or None,
            hflip=hflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            re_prob=random_erasing,
            re_mode="pixel",
            interpolation=interpolation or spec.interpolation,
            mean=spec.mean,
            std=spec.std,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"timm does not know the policy auto_augment={auto_augment!r} ({error}); expected one such as "
            "rand-m9-mstd0.5-inc1"
        ) from error


def evaluation_transform(spec: BackboneSpec | str) -> Transform:
    """Returns the transform without chance: the shorter edge resized, the centre cropped, normalised; [3, H, W]."""
    return image_transform(_single(spec), "resize-crop")


def _single(spec: BackboneSpec | str) -> BackboneSpec:
    spec = resolve_spec(spec)
    if spec.parts:
        raise ValueError(f"'{spec.id}' is fused: train a single ViT, such as '{spec.parts[0].id}'")
    return spec
