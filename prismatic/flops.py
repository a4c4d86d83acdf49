"""Floating-point operations by torch's formulas, and of attention on CPUs and of grouped heads as well."""

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten
_NAMES = [f"_scaled_dot_product_{kind}_attention" for kind in ("efficient", "flash", "cudnn")]
_CPU = "_scaled_dot_product_flash_attention_for_cpu"  # torch has no formula for this one


def _attention(query, key, value, *args, **kwargs) -> int:
    return sdpa_flop_count(query, _repeated(key, query), _repeated(value, query))


def _attention_backward(grad_out, query, key, value, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_out, query, _repeated(key, query), _repeated(value, query))


def _repeated(shape, query) -> tuple[int, ...]:
    """The shape `[B, heads, L, head_dim]` with as many heads as the query has: torch 2.11's formulas take no fewer."""
    return (shape[0], query[1], *shape[2:])


_ATTENTION = {getattr(_aten, name): _attention for name in (*_NAMES, _CPU)} | {
    getattr(_aten, f"{name}_backward"): _attention_backward for name in (*_NAMES, _CPU)
}


def flop_counter() -> FlopCounterMode:
    """A context that counts the operations in it, whose `get_total_flops()` gives their number."""
    return FlopCounterMode(display=False, custom_mapping=dict(_ATTENTION))


def flops_of(operation, args, kwargs, out) -> int:
    """FLOPs of one operation (an overload packet) with these arguments and results; 0 of those without a formula."""
    if operation in _ATTENTION:
        shapes = [x.shape for x in args[: 4 if _ATTENTION[operation] is _attention_backward else 3]]
        return _ATTENTION[operation](*shapes)
    return flop_registry[operation](*args, **kwargs, out_val=out) if operation in flop_registry else 0
