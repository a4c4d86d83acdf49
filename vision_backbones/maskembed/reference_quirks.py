"""What the reference's code does otherwise than the paper says, behind the one switch `as_reference`.

Golden tests compare with these on. The one quirk of text, words that become control tokens, is in
`prismatic.text.conversations`.
"""

import numpy as np
from torch import nn


def final_norm(vit: nn.Module) -> nn.LayerNorm:
    """A new final norm with eps 1e-5: the reference discards the pretrained one."""
    return nn.LayerNorm(vit.embed_dim, eps=1e-5)


def blockwise_rows(masks: np.ndarray, antithetical: bool) -> np.ndarray:
    """Block-wise masks `[rows, patches]` as the reference completes them.

    Rows without a mask hide everything, and complements are put into every third row, whatever the rows of an image.
    """
    if antithetical:
        for row in range(0, len(masks) - 1, 3):
            masks[row + 1] = ~masks[row]
    return masks


def loss_options(*, prefix_only: bool, training: bool) -> dict[str, bool]:
    """Options of `reconstruction_loss`.

    In training, though not in validation, masked_mse counts prefix tokens as hidden. Where prefix tokens alone are
    compared, a missing axis makes broadcasting compare every row with every other.
    """
    return {"masked_prefix": training, "pair_all": prefix_only}
