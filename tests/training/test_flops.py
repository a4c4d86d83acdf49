import pytest
import torch
import torch.nn.functional as F
from torch.utils import flop_counter as torchs

from prismatic.flops import flop_counter


def formula(heads: int, length: int, width: int) -> int:
    """Two products forward, five backward: scores again, and gradients of values, scores, queries and keys."""
    return 7 * 2 * heads * length**2 * width


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_on_a_cpu_counts(groups):
    q, k, v = (torch.randn(1, heads, 6, 8, requires_grad=True) for heads in (4, 4 // groups, 4 // groups))
    with flop_counter() as counter:
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1).sum().backward()
    assert counter.get_total_flops() == formula(4, 6, 8)


def torch_211(query, key, value):
    """What torch 2.11 does with grouped heads."""
    assert query[1] == key[1] == value[1], "sdpa_flop_count: query/key/value shapes are incompatible"
    return torchs.bmm_flop((query[1], query[2], query[3]), (key[1], key[3], key[2])) * 2


def test_grouped_heads_count_where_torchs_formula_refuses_them(monkeypatch):
    monkeypatch.setattr("prismatic.flops.sdpa_flop_count", torch_211)
    q, k, v = (torch.empty(1, heads, 6, 8, device="meta") for heads in (4, 2, 2))
    with flop_counter() as counter:
        torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    assert counter.get_total_flops() == 2 * 2 * 4 * 6**2 * 8
