"""How far a reconstruction is from its target."""

import torch
import torch.nn.functional as F

from vision_backbones.names import suggest

LOSSES = ("mse", "cosine", "l1", "masked_mse", "unmasked_mse")


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
        masked_prefix: masked_mse counts prefix tokens as hidden. The reference does so in MaskEmbed training, but not
            in its validation.
        pair_all: Compare every row's reconstruction with every row's target, as broadcasting does in the reference
            when prefix tokens alone are compared.
    """
    reconstruction, target = reconstruction.float(), target.float()
    if pair_all:
        reconstruction, target = torch.broadcast_tensors(reconstruction, target.squeeze(1))
    if loss == "mse":
        return F.mse_loss(reconstruction, target)
    if loss == "l1":
        return F.l1_loss(reconstruction, target)
    if loss == "cosine":
        return 1 - F.cosine_similarity(reconstruction, target, dim=-1).mean()
    counted = masks.float() if loss == "unmasked_mse" else 1 - masks.float()
    prefix = target.shape[1] - masks.shape[1]
    counted = F.pad(counted, (prefix, 0), value=float(loss == "unmasked_mse" or masked_prefix))
    return (counted[..., None] * (reconstruction - target) ** 2).mean()
