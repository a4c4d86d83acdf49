"""Attention of two kinds that Hugging Face has not: packed rows, and rows that share a prefix.

Packed examples are concatenated into one row without padding; `segment_lengths` says where each ends, every example
attends to itself alone and nothing outside it is computed. The whole-square alternative with a block mask costs several
times more and is wrong in some backends without an error.

Rows that share a prefix (questions about one image) read its keys and values once for all of them, where a cache that
repeats the prefix for every row would be read row by row: at one token a row, reading is all that attention costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTED = "segmented"
SHARED_PREFIX = "shared-prefix"


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


@dataclass(frozen=True)
class SharedPrefix:
    """Prefixes, and which rows of a batch continue which.

    Args:
        layers: keys and values `[prefixes, kv_heads, P, head_dim]` of every layer of the LLM.
        slots: `[prefixes, R]`, the rows that continue each prefix, filled up with any row.
        places: `[B]`, where each row stands in the flattened `slots`.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    slots: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of_rows(cls, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], prefixes: Sequence[int]) -> "SharedPrefix":
        """The layout of a batch whose row `i` continues prefix `prefixes[i]`."""
        rows_of: list[list[int]] = [[] for _ in range(layers[0][0].shape[0])]
        numbers = []
        for row, prefix in enumerate(prefixes):
            numbers.append(len(rows_of[prefix]))
            rows_of[prefix].append(row)
        most = max(map(len, rows_of))
        slots = [rows + [0] * (most - len(rows)) for rows in rows_of]
        places = [prefix * most + number for prefix, number in zip(prefixes, numbers, strict=True)]
        device = layers[0][0].device
        return cls(layers, torch.tensor(slots, device=device), torch.tensor(places, device=device))


def shared_prefix_attention(module, query, key, value, attention_mask, shared_prefix=None, **kwargs):
    """Attention of rows over the prefix that each continues and over their own tokens; plain SDPA without a prefix.

    The two parts are computed apart and joined by their log-sum-exp.

    Args:
        module: the attention layer.
        query: `[B, heads, L, head_dim]`.
        key: `[B, kv_heads, T, head_dim]`, of the rows' own tokens.
        value: as `key`.
        attention_mask: boolean `[B, 1, L, T]` over the rows' own tokens; every query sees at least one.
        shared_prefix: a `SharedPrefix`.
        kwargs: what SDPA takes; of these `scaling` is used.

    Returns:
        `[B, L, heads, head_dim]` and None (no attention weights).
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    query = query * (kwargs.get("scaling") or width**-0.5)
    query = query.reshape(rows, kv_heads, heads // kv_heads * length, width)
    mask = attention_mask.repeat(1, 1, heads // kv_heads, 1)
    own, own_sum = _partial_attention(query, key, value, mask)

    keys, values = shared_prefix.layers[module.layer_idx]
    prefixes, most = shared_prefix.slots.shape
    together = query[shared_prefix.slots].transpose(1, 2).reshape(prefixes, kv_heads, -1, width)
    shared, shared_sum = (
        x.view(prefixes, kv_heads, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)[shared_prefix.places]
        for x in _partial_attention(together, keys, values)
    )
    out = torch.lerp(own.float(), shared.float(), torch.sigmoid(shared_sum - own_sum)).to(value.dtype)
    return out.view(rows, heads, length, width).transpose(1, 2), None


def _partial_attention(query, key, value, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some of the keys, and the log-sum-exp `[..., 1]` of its float32 scores, to join it with others."""
    scores = (query @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    total = scores.sub_(top).exp_().sum(-1, keepdim=True)
    return (scores.to(value.dtype) @ value) / total, top + total.log()


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionMaskInterface.register(SEGMENTED, segmented_mask)
AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
