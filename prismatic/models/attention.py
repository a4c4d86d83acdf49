"""Attention of two kinds that Hugging Face has not: packed rows, and rows that share a prefix.

Packed examples are concatenated into one row without padding; `segment_lengths` says where each ends, every example
attends to itself alone and nothing outside it is computed. The whole-square alternative with a block mask costs several
times more and is wrong in some backends without an error.

Rows that share a prefix (questions about one image) read its keys and values once for all of them, where a cache that
repeats the prefix for every row would be read row by row: at one token a row, reading is all that attention costs.

Both know what layers of Hugging Face's models ask of their attention: a sliding window, a soft cap of the scores
(Gemma-2), sinks (gpt-oss), fewer heads of keys than of queries. Whether an LLM asks for all that it needs, only trying
shows: `prismatic.models.self_check`.
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
    """Causal attention inside each segment of a packed row; plain attention when no `segment_lengths` are given.

    Args:
        module: the attention layer.
        query: `[1, heads, T, head_dim]`.
        key: `[1, kv_heads, T, head_dim]`.
        value: as `key`.
        attention_mask: None in a packed row.
        segment_lengths: lengths of the packed examples, summing up to T.
        kwargs: what layers hand over (scaling, dropout, sliding_window, softcap, s_aux, ...).

    Returns:
        `[1, T, heads, head_dim]` and None (no attention weights).
    """
    if segment_lengths is None:
        return plain_attention(module, query, key, value, attention_mask, **kwargs)
    asked = _Asked.of_layer(kwargs)
    parts = [
        _attend(q, k, v, None, asked)
        for q, k, v in zip(*(x.split(segment_lengths, dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def segmented_mask(*args, attention_mask=None, **kwargs):
    """No mask for packed rows (they come without one); SDPA's own otherwise."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


def plain_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention of whole rows under a boolean mask `[B, 1, L, T]`, or causal without one; SDPA where that suffices."""
    asked = _Asked.of_layer(kwargs)
    if not asked.special and (attention_mask is not None or not asked.narrows(key)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _attend(query, key, value, attention_mask, asked).transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class _Asked:
    """What a layer asks of its attention, under the names that Hugging Face's models use."""

    scaling: float | None
    dropout: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @classmethod
    def of_layer(cls, kwargs: dict) -> "_Asked":
        names = ("scaling", "dropout", "sliding_window", "softcap", "s_aux")
        scaling, dropout, window, softcap, sinks = map(kwargs.get, names)
        return cls(scaling, dropout or 0.0, window, softcap, sinks)

    @property
    def special(self) -> bool:
        """Whether SDPA does not know it."""
        return self.softcap is not None or self.sinks is not None

    def narrows(self, key: torch.Tensor) -> bool:
        """Whether a query that sees all keys would see too many."""
        return self.window is not None and key.shape[2] > self.window


def _attend(query, key, value, mask, asked: _Asked) -> torch.Tensor:
    """Attention `[B, heads, L, head_dim]` under a boolean mask; None is causal, within the layer's window."""
    if mask is None and (asked.special or asked.narrows(key)):
        ends = torch.arange(key.shape[2], device=key.device)
        distance = ends[-query.shape[2] :, None] - ends
        mask = distance >= 0
        mask = mask & (distance < asked.window) if asked.window is not None else mask
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None:  # the fast kernels take groups of heads without a mask alone
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        grouped = False
    if not asked.special:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=asked.dropout, scale=asked.scaling,
            is_causal=mask is None, enable_gqa=grouped,
        )  # fmt: skip
    scores = _capped(query @ key.transpose(-1, -2) * (asked.scaling or query.shape[-1] ** -0.5), asked)
    scores = scores.float().masked_fill(~mask, float("-inf"))
    if asked.sinks is not None:
        sinks = asked.sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    shares = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return F.dropout(shares, asked.dropout) @ value


def _capped(scores: torch.Tensor, asked: _Asked) -> torch.Tensor:
    return scores if asked.softcap is None else torch.tanh(scores / asked.softcap) * asked.softcap


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
        positions: `[B, L]`, of the queries.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    slots: torch.Tensor
    places: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def of_rows(
        cls,
        layers: Sequence[tuple[torch.Tensor, torch.Tensor]],
        prefixes: Sequence[int],
        positions: torch.Tensor,
    ) -> "SharedPrefix":
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
        return cls(layers, torch.tensor(slots, device=device), torch.tensor(places, device=device), positions)


def shared_prefix_attention(module, query, key, value, attention_mask, shared_prefix=None, **kwargs):
    """Attention of rows over the prefix that each continues and over their own tokens; plain without a prefix.

    The two parts, and sinks, are computed apart and joined by their log-sum-exp.

    Args:
        module: the attention layer.
        query: `[B, heads, L, head_dim]`.
        key: `[B, kv_heads, T, head_dim]`, of the rows' own tokens, the last of which are those of the queries.
        value: as `key`.
        attention_mask: boolean `[B, 1, L, T]` over the rows' own tokens; every query sees at least one.
        shared_prefix: a `SharedPrefix`.
        kwargs: what layers hand over.

    Returns:
        `[B, L, heads, head_dim]` and None (no attention weights).
    """
    if shared_prefix is None:
        return plain_attention(module, query, key, value, attention_mask, **kwargs)
    asked = _Asked.of_layer(kwargs)
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query * (asked.scaling or width**-0.5)
    query = query.reshape(rows, kv_heads, group * length, width)
    if asked.narrows(key):
        ends = torch.arange(key.shape[2], device=key.device)
        attention_mask = attention_mask & (ends[-length:, None] - ends < asked.window)
    own, own_sum = _partial_attention(query, key, value, asked, attention_mask.repeat(1, 1, group, 1))

    keys, values = shared_prefix.layers[module.layer_idx]
    prefixes, most = shared_prefix.slots.shape
    together = query[shared_prefix.slots].transpose(1, 2).reshape(prefixes, kv_heads, -1, width)
    mask = None
    if asked.window is not None and keys.shape[2] + key.shape[2] > asked.window:
        near = shared_prefix.positions[:, :, None] - torch.arange(keys.shape[2], device=key.device) < asked.window
        mask = near.repeat(1, group, 1)[shared_prefix.slots].flatten(1, 2)[:, None]
    shared, shared_sum = (
        x.view(prefixes, kv_heads, most, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)[shared_prefix.places]
        for x in _partial_attention(together, keys, values, asked, mask)
    )
    out = torch.lerp(own.float(), shared.float(), torch.sigmoid(shared_sum - own_sum))
    if asked.sinks is not None:
        sinks = asked.sinks.float().view(1, kv_heads, group, 1).expand(rows, -1, -1, length)
        total = torch.logaddexp(own_sum, shared_sum)
        out = out * torch.sigmoid(total - sinks.reshape(rows, kv_heads, group * length, 1))
    return out.to(value.dtype).view(rows, heads, length, -1).transpose(1, 2), None


def _partial_attention(query, key, value, asked: _Asked, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some of the keys, and the log-sum-exp `[..., 1]` of its float32 scores, to join it with others.

    A query that sees none of the keys gets a sum of about nothing, and joins with others as if these keys were not.
    """
    scores = _capped(query @ key.transpose(-1, -2), asked).float()
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(torch.float32).min)
    top = scores.amax(-1, keepdim=True)
    total = scores.sub_(top).exp_().sum(-1, keepdim=True)
    return (scores.to(value.dtype) @ value) / total, top + total.log()


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionMaskInterface.register(SEGMENTED, segmented_mask)
AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
