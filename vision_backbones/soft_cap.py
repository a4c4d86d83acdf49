"""Soft-capped attention, which locality-aligned ViTs are trained with."""

from functools import cache

import torch
from timm.layers import Attention
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

CHUNK = 2**19  # logits that CPUs compute at once: they stay in the cache; accelerators do all at once
MILD = 30.0  # caps up to this one bound exponentials to what float32 and bfloat16 hold


class SoftCapAttention(Attention):
    """timm's attention with logits bounded to `(-cap, cap)` by `cap * tanh(logit / cap)`.

    Pass it as `attn_layer=` to a timm ViT: parameters keep their names. Source: the locality alignment paper's
    stabilised ViTs, which cap at 30.

    Attributes:
        cap: Bound of the logits; None for none.
        flex: Use compiled FlexAttention on CUDA: the same numbers, a third less memory, seconds of compiling.
    """

    cap: float | None = 30.0
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
        if self.cap is None and not _is_low_on_cpu(qkv):
            mixed = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), dropout_p=dropout, scale=self.scale)
            mixed = mixed.transpose(1, 2)
        elif self.flex and x.is_cuda and not dropout:
            mixed = flex_soft_capped_attention(qkv, self.cap, self.scale)
        else:
            mixed = soft_capped_attention(qkv, self.cap, self.scale, dropout)
        mixed = self.norm(mixed.flatten(2))
        if (gate := getattr(self, "gate", None)) is not None:  # timm has it since 1.0.25
            mixed = mixed * gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))


def soft_capped_attention(qkv: torch.Tensor, cap: float | None, scale: float, dropout: float = 0.0) -> torch.Tensor:
    """Returns `softmax(cap * tanh(scale * q k^T / cap)) v`, `[B, N, H, d]`, for packed `qkv`, `[B, N, 3, H, d]`.

    Without a cap, plain attention: in low precision on CPUs torch's own takes three times as long for its gradients. In
    low precision the matrix products are rounded; cap and softmax are float32. There are no second derivatives.
    """
    if not dropout and not torch.compiler.is_compiling():  # compilers fuse the formula themselves
        return _Attention.apply(qkv, cap, scale)
    return capped_attention(*qkv.permute(2, 0, 3, 1, 4), cap, scale, None, dropout).transpose(1, 2)


def capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cap: float | None,
    scale: float,
    bias: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Returns `softmax(cap * tanh(scale * q k^T / cap) + bias) v`, `[B, H, N, d]`, for q, k, v `[B, H, N, d]`."""
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = cap * torch.tanh(logits / cap) if cap else logits
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


class _Attention(torch.autograd.Function):
    """In float32 logits are computed again for the gradients, which is no slower than to fetch them from memory.

    What the softmax cannot tell from `cap * tanh(x / cap)` is `-2 * cap * sigmoid(-2 * x / cap)`: never positive, so
    that no row needs its largest logit subtracted, and as fast as an exponential, which tanh is not on every CPU. For
    a cap far above all logits it would lose digits.
    """

    @staticmethod
    def forward(ctx, qkv, cap, scale):
        images, tokens, _, heads, width = qkv.shape
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
        out, sums = torch.empty_like(q), q.new_empty(len(q), tokens, 1, dtype=_wide(q.dtype))
        kept = len(q) if ctx.needs_input_grad[0] and q.dtype != sums.dtype else 0
        matrices = q.new_empty(2 if cap else 1, kept, tokens, tokens)
        weights, slopes = matrices[0], matrices[-1]
        with _no_autocast(qkv):
            for part, x, weight, low in _parts(q):
                _weigh(q[part], k[part], cap, scale, x, weight, low)
                torch.sum(weight, -1, keepdim=True, out=sums[part])
                torch.bmm(low, v[part], out=out[part]).div_(sums[part])
                if kept:
                    weights[part] = low
                    slopes[part] = _times_slopes(x, weight, cap) if cap else low
        out = out.view(images, heads, tokens, width).transpose(1, 2).contiguous()
        ctx.save_for_backward(q, k, v, out, sums, weights, slopes)
        ctx.cap, ctx.scale = cap, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, out, sums, weights, slopes = ctx.saved_tensors
        cap, scale = ctx.cap, ctx.scale
        images, tokens, heads, width = grad.shape
        factor = scale * (4 if cap and cap <= MILD else 1)
        inner = (grad * out).sum(-1, dtype=sums.dtype).transpose(1, 2).reshape(sums.shape).div_(sums)
        grad = grad.transpose(1, 2).reshape(q.shape).div(sums).to(q.dtype)
        dq, dk, dv = grads = q.new_empty(3, *q.shape)
        with _no_autocast(q):
            for part, x, weight, low in _parts(q):
                if len(weights):
                    w, slope = weights[part], slopes[part]
                else:
                    w, slope = _weigh(q[part], k[part], cap, scale, x, weight, low), x
                torch.bmm(w.transpose(1, 2), grad[part], out=dv[part])
                slope = slope if len(weights) else _times_slopes(x, weight, cap)
                d = torch.bmm(grad[part], v[part].transpose(1, 2), out=low)
                d.sub_(inner[part].to(d.dtype)).mul_(slope)
                torch.baddbmm(dq[part], d, k[part], beta=0, alpha=factor, out=dq[part])
                torch.baddbmm(dk[part], d.transpose(1, 2), q[part], beta=0, alpha=factor, out=dk[part])
        return grads.view(3, images, heads, tokens, width).permute(1, 3, 0, 2, 4), None, None


def _weigh(q, k, cap, scale, x, weights, low):
    """Fills `weights` with exponentials of the logits up to a factor of each row, copies them to `low`, returns that.

    `x` gets what `_times_slopes` needs.
    """
    factor = scale / cap if cap else scale
    factor = -2 * factor if cap and cap <= MILD else factor
    if low is weights:
        torch.baddbmm(x, q, k.transpose(1, 2), beta=0, alpha=factor, out=x)
    else:
        x.copy_(torch.bmm(q, k.transpose(1, 2), out=low)).mul_(factor)
    if not cap:
        torch.sub(x, x.amax(-1, keepdim=True), out=weights).exp_()
    elif cap <= MILD:
        torch.mul(x.sigmoid_(), -2 * cap, out=weights).exp_()
    else:
        torch.mul(x.tanh_(), cap, out=weights)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    if low.dtype == torch.float16:  # which holds neither such small weights nor such large sums
        weights.div_(weights.sum(-1, keepdim=True))
    return low if low is weights else low.copy_(weights)


def _times_slopes(x, weights, cap):
    """Fills `x` with the weights times the cap's slopes (a quarter of them for mild caps), and returns it."""
    if not cap:
        return x.copy_(weights)
    if cap <= MILD:
        return x.addcmul_(x, x, value=-1).mul_(weights)
    return torch.addcmul(x.new_ones(()), x, x, value=-1, out=x).mul_(weights)


def _parts(q):
    """What is computed at once, with memory for its logits: two in float32 at least, one as precise as q."""
    tokens = q.shape[1]
    count = min(len(q), max(1, CHUNK // max(1, tokens**2))) if q.device.type == "cpu" else len(q)
    x, weights = q.new_empty(2, count, tokens, tokens, dtype=_wide(q.dtype))
    low = weights if weights.dtype == q.dtype else q.new_empty(weights.shape)
    for start in range(0, len(q), max(count, 1)):
        size = min(count, len(q) - start)
        some = weights[:size]
        yield slice(start, start + size), x[:size], some, some if low is weights else low[:size]


def _no_autocast(x):
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _is_low_on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype != _wide(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
