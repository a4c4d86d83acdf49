"""Attention for packed rows: every example attends to itself alone, and nothing outside it is computed.

Packed examples are concatenated into one row without padding; `segment_lengths` says where each ends. The whole-square
alternative with a block mask costs several times more and is wrong in some backends without an error.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTED = "segmented"


def segmented_attention(module, query, key, value, attention_mask, segment_lengths=None, **kwargs):
    """Causal attention inside each segment of a packed row; plain SDPA when no `segment_lengths` are given.

    Args:
        module: the attention layer.
        query: `[1, heads, T, head_dim]`.
        key: `[1, kv_heads, T, head_dim]`.
        value: as `key`.
        attention_mask: None in a packed row.
        segment_lengths: lengths of the packed examples, summing up to T.
        kwargs: what SDPA takes (scaling, dropout, ...).

    Returns:
        `[1, T, heads, head_dim]` and None (no attention weights).
    """
    if segment_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=kwargs.get("dropout", 0.0),
            scale=kwargs.get("scaling"),
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        for q, k, v in zip(*(x.split(segment_lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def segmented_mask(*args, attention_mask=None, **kwargs):
    """No mask for packed rows (they come without one); SDPA's own otherwise."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def segment_lengths(position_ids: torch.Tensor) -> list[int]:
    """Lengths of the examples in a packed row `[1, T]`, whose positions restart at 0 with each of them."""
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], position_ids.shape[1]], strict=True)]


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionMaskInterface.register(SEGMENTED, segmented_mask)
