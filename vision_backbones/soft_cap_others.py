"""The soft cap for attention of other kinds than timm's plain one: rotary (DINOv3, PE, EVA-02), or with BEiT's bias.

What these layers do around the attention itself stays timm's: of what they ask of torch, the attention alone is
answered otherwise.
"""

from functools import cache

import torch
from timm.layers import AttentionRope
from timm.models import beit, eva, is_model_in_modules
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vision_backbones.soft_cap import SoftCapAttention, capped_attention, soft_capped_attention

KINDS = (AttentionRope, eva.EvaAttention, beit.Attention)
OTHERS = ["eva", "beit"]  # modules of timm whose models take no `attn_layer`


class SoftCap:
    """Attention whose logits are bounded to `(-cap, cap)`, before a bias of positions is added, if there is one."""

    cap: float = 30.0

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """Takes and returns what the layer of timm does."""
        with _Capped(self.cap):
            return super().forward(*args, **kwargs)


class _Capped(TorchFunctionMode):
    def __init__(self, cap: float):
        super().__init__()
        self.cap = cap

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise ValueError("soft-capped attention takes no mask: image tokens all see each other")
        scale = scale or q.shape[-1] ** -0.5
        if attn_mask is not None:
            return capped_attention(q, k, v, self.cap, scale, attn_mask, dropout_p)
        qkv = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4)
        return soft_capped_attention(qkv, self.cap, scale, dropout_p).transpose(1, 2)


def create_capped(create, arch: str, cap: float | None, **kwargs) -> nn.Module:
    """Returns the timm model that `create(**kwargs)` gives of an architecture, with soft-capped attention.

    Raises:
        TypeError: It cannot be built so.
        ValueError: Its attention is of a kind that has no soft cap.
    """
    if not cap:
        return create(**kwargs)
    if is_model_in_modules(arch, OTHERS):
        vit = create(**kwargs)
        for layer in (module for module in vit.modules() if type(module) in KINDS):
            layer.__class__, layer.fused_attn = _capped(type(layer)), True
    else:
        vit = create(attn_layer=SoftCapAttention, **kwargs)
    capped = [module for module in vit.modules() if isinstance(module, SoftCap | SoftCapAttention)]
    if not capped:
        raise ValueError("has attention of its own, soft_cap does not apply to it")
    for layer in capped:
        layer.cap = cap
    return vit


@cache
def _capped(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"SoftCap{kind.__name__}", (SoftCap, kind), {"__module__": __name__, "__doc__": SoftCap.__doc__})
