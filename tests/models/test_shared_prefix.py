"""Attention of our own against attention written out: rows after a shared prefix, and packed rows."""

from types import SimpleNamespace

import pytest
import torch

from prismatic.models.attention import SharedPrefix, segmented_attention, shared_prefix_attention

ASKED = {
    "plain": {},
    "window": {"sliding_window": 9},
    "a window without the prefix": {"sliding_window": 2},
    "soft cap": {"softcap": 0.5},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all": {"sliding_window": 9, "softcap": 0.5, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


def by_hand(query, key, value, mask, scaling, sliding_window=None, softcap=None, s_aux=None):
    """Attention written out, of rows whose queries are the last tokens."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    if sliding_window is not None:
        ends = torch.arange(key.shape[2])
        mask = mask & (ends[-query.shape[2] :, None] - ends < sliding_window)
    shares = scores.exp() * mask
    sinks = 0 if s_aux is None else s_aux.exp().view(1, -1, 1, 1)
    return torch.einsum("bhqk,bhkd->bqhd", shares / (shares.sum(-1, keepdim=True) + sinks), value)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 5])
def test_equals_attention_over_prefix_and_row_put_together(kv_heads, length, asked):
    torch.manual_seed(0)
    prefixes, width, own, of_row = 3, 8, 7, [2, 0, 2, 2, 0]  # nobody continues prefix 1
    layers = [torch.randn(2, prefixes, kv_heads, 11, width).unbind(0) for _ in range(2)]
    query = torch.randn(5, 4, length, width)
    key, value = torch.randn(2, 5, kv_heads, own, width).unbind(0)
    mask = torch.rand(5, 1, length, own) < 0.6
    for place in range(length):
        mask[:, :, place, own - length + place] = True
    positions = torch.arange(11 + own - length, 11 + own).expand(5, -1)
    prefix = SharedPrefix.of_rows(layers, of_row, positions)
    module = SimpleNamespace(layer_idx=1)
    out, weights = shared_prefix_attention(module, query, key, value, mask, prefix, scaling=0.7, **ASKED[asked])
    together = [torch.cat([prefix[of_row], row], dim=2) for prefix, row in zip(layers[1], (key, value), strict=True)]
    mask = torch.cat([mask.new_ones(5, 1, length, 11), mask], dim=-1)
    assert weights is None
    torch.testing.assert_close(out, by_hand(query, *together, mask, 0.7, **ASKED[asked]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("lengths", [None, [12], [3, 9]])
def test_packed_rows_are_rows_by_themselves(asked, lengths):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    module = SimpleNamespace(num_key_value_groups=2)
    out, _ = segmented_attention(module, query, key, value, None, lengths, scaling=0.7, **ASKED[asked])
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    expected, start = [], 0
    for length in lengths or [12]:
        part = slice(start, start + length)
        parts = (x[:, :, part] for x in (query, key, value))
        expected.append(by_hand(*parts, causal[part, part], 0.7, **ASKED[asked]))
        start += length
    torch.testing.assert_close(out, torch.cat(expected, dim=1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("asked", ["plain", "soft cap"])
def test_layers_that_say_no_scale_get_that_of_their_width(asked):
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 12, 8), torch.randn(1, 4, 12, 8), torch.randn(1, 4, 12, 8)
    out, _ = segmented_attention(SimpleNamespace(), query, key, value, None, [12], **ASKED[asked])
    expected = by_hand(query, key, value, torch.ones(12, 12, dtype=torch.bool).tril(), 8**-0.5, **ASKED[asked])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def test_scores_far_apart_do_not_overflow():
    layers = [(torch.full((1, 1, 2, 4), 100.0), torch.ones(1, 1, 2, 4))]
    query, key, value = torch.full((1, 1, 1, 4), 100.0), torch.full((1, 1, 1, 4), -100.0), torch.zeros(1, 1, 1, 4)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    module, prefix = SimpleNamespace(layer_idx=0), SharedPrefix.of_rows(layers, [0], torch.tensor([[2]]))
    out, _ = shared_prefix_attention(module, query, key, value, mask, prefix)
    assert torch.equal(out, torch.ones(1, 1, 1, 4))
