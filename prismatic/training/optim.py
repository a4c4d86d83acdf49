"""What is trained, how it decays, and the learning rate of every step."""

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from prismatic.models.stages import part_of


def decays(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: to matrices and embeddings, not to vectors and biases."""
    return parameter.ndim >= 2 and not name.endswith(".bias")


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two AdamW groups of the trainable parameters, with and without decay."""
    named = [(n, p) for n, p in named if p.requires_grad]
    return [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]


def adamw(config, model: nn.Module) -> torch.optim.AdamW:
    """The optimizer of a `FinetuneConfig`, with groups of their own for a projector with its own learning rate.

    It is made once the model is sharded.
    """
    decay, named = config.weight_decay * (config.decay == "matrices"), list(model.named_parameters())
    if config.projector_learning_rate is None:
        groups = parameter_groups(named, decay)
    else:
        scale = config.projector_learning_rate / config.learning_rate
        groups = parameter_groups([one for one in named if part_of(one[0]) != "projector"], decay)
        own = parameter_groups([one for one in named if part_of(one[0]) == "projector"], decay)
        groups += [group | {"lr_scale": scale} for group in own]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_steps: int, minimum: float = 0.0) -> float:
    """Rate of the `step`-th optimizer step (0-based): linear warm-up, then cosine to `minimum`.

    The first step runs at rate 0, as in the reference, whose schedule it reproduces.
    """
    if step == 0:
        return 0.0
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))


def schedule(config, total_steps: int) -> Callable[[int], float]:
    """`learning_rate` of a finetune with the settings `config`."""
    return partial(
        learning_rate,
        peak=config.learning_rate,
        total_steps=total_steps,
        warmup_steps=int(total_steps * config.warmup_ratio),
        minimum=config.min_learning_rate,
    )


def cosine_rate(
    step: int, *, peak: float, minimum: float, total_steps: int, warmup_steps: int = 0, warmup_from: float = 0.0
) -> float:
    """Rate of the `step`-th optimizer step (0-based) of the vision recipes: a cosine from `peak` to `minimum`.

    The cosine spans all `total_steps`; a linear warm-up from `warmup_from` takes the place of its first
    `warmup_steps`. This is timm's schedule, which MaskEmbed's reference uses.
    """
    if step < warmup_steps:
        return warmup_from + (peak - warmup_from) * step / warmup_steps
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
