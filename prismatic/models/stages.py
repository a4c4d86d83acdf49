"""What a stage of a finetune trains, and what it keeps frozen."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from prismatic.checkpoints.old_names import PEFT
from prismatic.models.deferred_weights import is_placeholder, placeholder
from prismatic.models.lora import add_lora
from prismatic.models.quantize import parameter_count

STAGES = ("align", "finetune", "full-finetune", "lora")


def set_trainable(model: nn.Module, stage: str) -> None:
    """Freezes what a stage does not train: align trains the projector, finetune also the LLM, full-finetune all.

    For lora it freezes all but the projector; peft adds the adapters (`prismatic.models.lora.add_lora`).

    Raises:
        ValueError: the stage is unknown.
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}: expected one of {', '.join(STAGES)}")
    trained = {
        "align": ("projector",),
        "finetune": ("projector", "llm"),
        "full-finetune": ("projector", "llm", "vision_backbone"),
        "lora": ("projector",),
    }[stage]
    for name, part in model.parts().items():
        part.requires_grad_(name in trained)


def as_stage(model: nn.Module, stage: str, lora: dict):
    """The model with what a stage does not train frozen, adapters of `add_lora` included."""
    set_trainable(model, stage)
    return add_lora(model, **lora) if stage == "lora" else model


def trained_and_frozen(model: nn.Module) -> list[tuple[str, int, int]]:
    """Rows `(part, trained parameters, frozen parameters)` of backbone, projector and LLM."""
    rows = []
    named = [(n, p) for n, p in model.named_parameters() if "original_module" not in n]  # peft keeps an unused copy
    for part in ("vision_backbone", "projector", "llm"):
        sizes = [(parameter_count(p), p.requires_grad) for n, p in named if part_of(n) == part]
        rows.append((part, sum(n for n, t in sizes if t), sum(n for n, t in sizes if not t)))
    return rows


def part_of(name: str) -> str:
    """The part of a model, adapters included, that a parameter is named after: vision_backbone, projector or llm."""
    first = name.removeprefix(PEFT).removeprefix("model.").partition(".")[0]
    return first if first in ("vision_backbone", "projector") else "llm"


def halve_frozen(model: nn.Module) -> None:
    """Casts frozen parameters to bfloat16: nothing is added to them, so float32 would only cost memory."""
    normed = {p for m in model.modules() if isinstance(m, BatchNorm) for p in m.parameters()}  # as are its statistics
    for parameter in model.parameters():
        if parameter in normed:
            continue
        if not parameter.requires_grad and parameter.is_floating_point() and type(parameter.data) is torch.Tensor:
            later = is_placeholder(parameter)
            parameter.data = placeholder(parameter.shape, torch.bfloat16) if later else parameter.data.bfloat16()
