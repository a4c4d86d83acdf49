"""How far a reconstruction is from its target."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vision_backbones.names import registered, suggest

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {}


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """A decorator that makes `--loss NAME` the mean that a function returns.

    It is called with reconstructions and targets `[B * R, tokens, D]` in float32, and which tokens are visible
    `[B * R, tokens]`, 0 or 1.

    Raises:
        ValueError: the name is taken.
    """
    return registered("loss", name, LOSSES)


@register_loss("mse")
def _mse(reconstruction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Squared error, on targets scaled to unit variance."""
    return F.mse_loss(reconstruction, target)


@register_loss("cosine")
def _cosine(reconstruction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """1 - cosine similarity of tokens."""
    return 1 - F.cosine_similarity(reconstruction, target, dim=-1).mean()


@register_loss("l1")
def _l1(reconstruction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Absolute error."""
    return F.l1_loss(reconstruction, target)


@register_loss("masked_mse")
def _masked_mse(reconstruction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Squared error of hidden patches."""
    return ((1 - visible)[..., None] * (reconstruction - target) ** 2).mean()


@register_loss("unmasked_mse")
def _unmasked_mse(reconstruction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Squared error of visible patches."""
    return (visible[..., None] * (reconstruction - target) ** 2).mean()


def check_loss(loss: str, *, prefix_only: bool) -> None:
    """Raises ValueError when the loss is unknown, or needs patches where there are only prefix tokens."""
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: {suggest(loss, LOSSES)}")
    if prefix_only and loss.endswith("masked_mse"):
        raise ValueError(f"loss {loss} weighs patches by their masks, prefix_only leaves none: use mse, cosine or l1")


def reconstruction_loss(
    reconstruction: torch.Tensor,
    target: torch.Tensor,
    masks: torch.Tensor,
    loss: str = "mse",
    *,
    masked_prefix: bool = False,
    pair_all: bool = False,
) -> torch.Tensor:
    """The mean loss of a batch, a scalar in float32.

    mse and l1 are means over all elements, cosine is 1 - the mean similarity of tokens. masked_mse and unmasked_mse
    count the squared errors of hidden and of visible patches alone, but divide by the number of all elements.

    Args:
        reconstruction: `[B * R, tokens, D]`.
        target: The same shape.
        masks: `[B * R, patches]`, True where a patch is visible.
        loss: One of `LOSSES`.
        masked_prefix: masked_mse counts prefix tokens as hidden; see `reference_quirks.loss_options`.
        pair_all: Compare every row's reconstruction with every row's target; see there.
    """
    reconstruction, target = reconstruction.float(), target.float()
    if pair_all:
        reconstruction, target = torch.broadcast_tensors(reconstruction, target.squeeze(1))
    prefix_visible = float(not (masked_prefix and loss == "masked_mse"))
    visible = F.pad(masks.float(), (target.shape[1] - masks.shape[1], 0), value=prefix_visible)
    return LOSSES[loss](reconstruction, target, visible)
