"""Attention over a shared prefix against plain attention over prefix and row put together."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from prismatic.models.attention import SharedPrefix, shared_prefix_attention


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("length", [1, 5])
def test_equals_attention_over_prefix_and_row_put_together(kv_heads, length):
    torch.manual_seed(0)
    prefixes, width, own, of_row = 3, 8, 7, [2, 0, 2, 2, 0]  # nobody continues prefix 1
    layers = [torch.randn(2, prefixes, kv_heads, 11, width).unbind(0) for _ in range(2)]
    query = torch.randn(5, 4, length, width)
    key, value = torch.randn(2, 5, kv_heads, own, width).unbind(0)
    mask = torch.rand(5, 1, length, own) < 0.6
    mask[..., -1] = True
    out, weights = shared_prefix_attention(
        SimpleNamespace(layer_idx=1), query, key, value, mask, SharedPrefix.of_rows(layers, of_row), scaling=0.7
    )
    together = [torch.cat([prefix[of_row], row], dim=2) for prefix, row in zip(layers[1], (key, value), strict=True)]
    mask = torch.cat([mask.new_ones(5, 1, length, 11), mask], dim=-1)
    expected = F.scaled_dot_product_attention(query, *together, attn_mask=mask, scale=0.7, enable_gqa=True)
    assert weights is None
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-6, rtol=1e-6)


def test_scores_far_apart_do_not_overflow():
    layers = [(torch.full((1, 1, 2, 4), 100.0), torch.ones(1, 1, 2, 4))]
    query, key, value = torch.full((1, 1, 1, 4), 100.0), torch.full((1, 1, 1, 4), -100.0), torch.zeros(1, 1, 1, 4)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    module = SimpleNamespace(layer_idx=0)
    out, _ = shared_prefix_attention(module, query, key, value, mask, SharedPrefix.of_rows(layers, [0]))
    assert torch.equal(out, torch.ones(1, 1, 1, 4))
