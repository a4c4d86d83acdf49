"""Linear layers of a frozen model on a CPU: weights in oneDNN's own order, bias and GELU in the pass of the product."""

import math

import torch
from timm.layers import Attention, Mlp
from torch import nn
from torch.utils.flop_counter import register_flop_formula

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU and this torch pack weights of this type; bfloat16 takes AVX-512 or AVX-NE-CONVERT."""
    if dtype == torch.bfloat16:
        return AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return AVAILABLE and dtype == torch.float32


def pack_linear(model: nn.Module) -> None:
    """Replaces linear layers of a frozen ViT's attention and MLPs by packed ones, where `can_pack` their precision.

    Outputs differ by rounding alone. Afterwards the model can neither be trained, nor saved, nor moved. Attention of
    other kinds than timm's plain one (BEiT, EVA-02) reads its weights itself, and is left as it is.
    """
    for module in list(model.modules()):
        if type(module) in (Attention, Mlp) and not can_pack(next(module.parameters()).dtype):
            continue
        if type(module) is Attention:
            module.qkv, module.proj = PackedLinear(module.qkv), PackedLinear(module.proj)
        elif type(module) is Mlp and isinstance(module.fc1, nn.Linear):
            exact = type(module.act) is nn.GELU and module.act.approximate == "none"
            fused = exact and module.drop1.p == 0
            module.fc1, module.fc2 = PackedLinear(module.fc1, "gelu" if fused else "none"), PackedLinear(module.fc2)
            module.act = nn.Identity() if fused else module.act


class PackedLinear(nn.Module):
    """`F.gelu(linear(x))` for the function "gelu", for "none" `linear(x)`; `[..., N, in]` to `[..., N, out]`."""

    def __init__(self, linear: nn.Linear, function: str = "none"):
        super().__init__()
        self.function, self.bias, self.dtype = function, linear.bias, linear.weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns outputs of the layer's own precision."""
        linear = torch.ops.mkldnn._linear_pointwise
        return linear(x.to(self.dtype), self.weight, self.bias, self.function, [], "none")


if AVAILABLE:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x, *shapes, out_shape, **kwargs) -> int:
        return 2 * x[-1] * math.prod(out_shape)
