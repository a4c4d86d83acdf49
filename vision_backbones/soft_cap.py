"""Soft-capped attention, which locality-aligned ViTs are trained with."""

from functools import cache

import torch
from timm.layers import Attention
from torch.autograd.function import once_differentiable

CHUNK = 2**20  # logits that CPUs compute at once: they stay in the cache; accelerators do all at once


class SoftCapAttention(Attention):
    """timm's attention with logits bounded to `(-cap, cap)` by `cap * tanh(logit / cap)`.

    Pass it as `attn_layer=` to a timm ViT: parameters keep their names. Source: the locality alignment paper's
    stabilised ViTs, which cap at 30.

    Attributes:
        cap: Bound of the logits.
        flex: Use compiled FlexAttention on CUDA: the same numbers, a third less memory, seconds of compiling.
    """

    cap: float = 30.0
    flex: bool = False

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Returns tokens `[B, N, dim]` for tokens `[B, N, dim]`.

        Raises:
            ValueError: If a mask is given; image tokens all see each other.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("SoftCapAttention takes no attention mask: image tokens all see each other")
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        if not isinstance(self.q_norm, torch.nn.Identity):
            q, k, v = qkv.unbind(2)
            qkv = torch.stack([self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v], dim=2)
        dropout = self.attn_drop.p if self.training else 0.0
        if self.flex and x.is_cuda and not dropout:
            mixed = flex_soft_capped_attention(qkv, self.cap, self.scale)
        else:
            mixed = soft_capped_attention(qkv, self.cap, self.scale, dropout)
        mixed = self.norm(mixed.flatten(2))
        if (gate := getattr(self, "gate", None)) is not None:  # timm has it since 1.0.25
            mixed = mixed * gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))


def soft_capped_attention(qkv: torch.Tensor, cap: float, scale: float, dropout: float = 0.0) -> torch.Tensor:
    """Returns `softmax(cap * tanh(scale * q k^T / cap)) v`, `[B, N, H, d]`, for packed `qkv`, `[B, N, 3, H, d]`.

    In low precision the matrix products are rounded; cap and softmax are float32. There are no second derivatives.
    """
    if not dropout and not torch.compiler.is_compiling():  # compilers fuse the formula themselves
        return _SoftCapped.apply(qkv, cap, scale)
    return capped_attention(*qkv.permute(2, 0, 3, 1, 4), cap, scale, None, dropout).transpose(1, 2)


def capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cap: float,
    scale: float,
    bias: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Returns `softmax(cap * tanh(scale * q k^T / cap) + bias) v`, `[B, H, N, d]`, for q, k, v `[B, H, N, d]`."""
    logits = cap * torch.tanh((q * scale) @ k.transpose(-2, -1) / cap)
    logits = logits if bias is None else logits + bias
    weights = torch.dropout(logits.softmax(dim=-1, dtype=_wide(q.dtype)), dropout, train=True)
    return weights.to(v.dtype) @ v


def flex_soft_capped_attention(qkv: torch.Tensor, cap: float, scale: float) -> torch.Tensor:
    """Returns what `soft_capped_attention` returns, by compiled FlexAttention: its CPU form has no backward."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return _compiled_flex_attention()(q, k, v, score_mod=_score_mod(cap), scale=scale).transpose(1, 2)


@cache
def _compiled_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@cache  # one function for each cap, so that nothing is compiled twice
def _score_mod(cap: float):
    return lambda score, batch, head, query, key: cap * torch.tanh(score / cap)


class _SoftCapped(torch.autograd.Function):
    """Works in place, and keeps the attention weights and the cap's slopes alone, in the precision of the inputs.

    In low precision `2 * cap * sigmoid(2 * x / cap)`, which the softmax cannot tell from `cap * tanh(x / cap)`, takes
    the place of a tanh that CPUs compute slowly; the slope is then 4 * sigmoid * (1 - sigmoid).
    """

    @staticmethod
    def forward(ctx, qkv, cap, scale):
        images, tokens, _, heads, width = qkv.shape
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
        slopes, weights = q.new_empty(2, len(q) if ctx.needs_input_grad[0] else 0, tokens, tokens)
        out = torch.empty_like(q)
        with _no_autocast(qkv):
            for part in _chunks(q):
                logits = torch.bmm(q[part], k[part].transpose(1, 2))
                if q.dtype == _wide(q.dtype):
                    logits = _tanh(logits.mul_(scale).div_(cap))
                    slope = torch.addcmul(logits.new_ones(()), logits, logits, value=-1)
                    weight = torch.softmax(logits.mul_(cap), dim=-1)
                else:
                    logits = logits.float().mul_(2 * scale / cap).sigmoid_()
                    slope = torch.addcmul(logits, logits, logits, value=-1)
                    weight = torch.softmax(logits.mul_(2 * cap), dim=-1).to(q.dtype)
                torch.bmm(weight, v[part], out=out[part])
                if ctx.needs_input_grad[0]:
                    slopes[part], weights[part] = slope, weight
        ctx.save_for_backward(q, k, v, slopes, weights)
        ctx.scale = scale if q.dtype == _wide(q.dtype) else 4 * scale
        ctx.shape = (images, heads, tokens, width)
        return out.view(ctx.shape).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, slopes, weights = ctx.saved_tensors
        grad = grad.transpose(1, 2).reshape(q.shape)
        dq, dk, dv = grads = q.new_empty(3, *q.shape)
        with _no_autocast(q):
            for part in _chunks(q):
                torch.bmm(weights[part].transpose(1, 2), grad[part], out=dv[part])
                d = torch.bmm(grad[part], v[part].transpose(1, 2))
                d = torch.ops.aten._softmax_backward_data(d, weights[part], -1, d.dtype).mul_(slopes[part])
                torch.baddbmm(dq[part], d, k[part], beta=0, alpha=ctx.scale, out=dq[part])
                torch.baddbmm(dk[part], d.transpose(1, 2), q[part], beta=0, alpha=ctx.scale, out=dk[part])
        return grads.view(3, *ctx.shape).permute(1, 3, 0, 2, 4), None, None


def _no_autocast(x):
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _chunks(q) -> list[slice]:
    count = max(1, CHUNK // q.shape[1] ** 2) if q.device.type == "cpu" else len(q)
    return [slice(start, start + count) for start in range(0, len(q), count)]


def _tanh(x):
    """As exact as `torch.tanh`, which takes four times as long on CPUs that have oneDNN."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return x.to_mkldnn().tanh_().to_dense()
    return x.tanh_()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
