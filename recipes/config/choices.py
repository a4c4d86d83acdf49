"""What settings with a fixed set of values can be. Draccus finds the help text of annotations that are names alone."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal

from vision_backbones.names import suggest

Precision = Literal["bf16", "fp32"]
ServePrecision = Literal["auto", "bf16", "fp32"]
Stage = Literal["align", "finetune", "full-finetune", "lora"]
Sharding = Literal["full", "grad-op", "hybrid", "none"]
ReduceDtype = Literal["float32", "bfloat16"]
Decay = Literal["matrices", "as-reference"]
Quantization = Literal["4bit", "8bit"]
OnBadImage = Literal["error", "skip"]
Layout = Literal["auto", "llava", "cauldron", "messages", "caption"]
Sampler = Literal["split-modality", "shuffle"]
CropMode = Literal["rkrc", "rkrr", "rrc", "none"]
Interpolation = Literal["bicubic", "bilinear", "random"]
MaskSampler = Literal["uniform", "bernoulli", "blockwise"]
StudentHead = Literal["linear", "mlp"]
ClassifierHead = Literal["linear", "transformer", "attention"]
FeatureCache = Literal["memory", "disk", "off"]
BoxFrame = Literal["image", "padded-square"]
ResizeStrategy = Literal["resize-naive", "resize-crop", "letterbox"]
ProbeDataset = Literal["coco", "coco-things", "ade20k", "miniature"]
ProbeHead = Literal["linear", "mlp", "transformer", "transformer-cls", "transformer-separate"]


def choices_of(config_class, prefix: str = "") -> dict[str, tuple]:
    """What settings of a `Literal` type can be, by their flags."""
    found = {}
    for name, kind in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            found |= choices_of(kind, f"{prefix}{name}.")
        options = [kind, *typing.get_args(kind)]
        if literal := next((option for option in options if typing.get_origin(option) is typing.Literal), None):
            none = (None,) if type(None) in options else ()
            found[prefix + name] = none + typing.get_args(literal)
    return found


def choose(settings: dict[str, Any], name: str, values: Sequence[Any], allowed: tuple) -> None:
    """Puts the last of `values` into nested settings, once it and what is there already are among those allowed.

    Raises:
        ValueError: one is not, or what the setting belongs to is no group of settings.
    """
    *groups, last = name.split(".")
    for group in groups:
        inner = settings.get(group)
        if not isinstance(inner, dict | None):
            raise ValueError(f"{group} is {inner!r}: expected settings by name, such as {last}")
        if inner is None and not values:
            return
        settings[group] = settings = dict(inner or {})
    for value in [*([settings[last]] if last in settings else []), *values]:
        # as YAML has them
        settings[last] = "off" if value is False and "off" in allowed else None if value == "null" else value
        if settings[last] not in allowed:
            shown = " or ".join("null" if choice is None else str(choice) for choice in allowed)
            near = suggest(str(value), [choice for choice in allowed if choice], otherwise="")
            raise ValueError(f"--{name} is {value!r}: expected {shown}{near and f'; {near}'}")
