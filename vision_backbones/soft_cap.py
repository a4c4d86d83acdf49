"""Soft-capped attention, which locality-aligned ViTs are trained with."""

from collections.abc import Iterator
from functools import cache

import torch
from timm.layers import Attention
from torch.autograd.function import once_differentiable

# Logits held at once: on CPU a tile stays in the cache of a core, elsewhere it is large enough to fill the device.
CPU_TILE, ACCELERATOR_TILE = 2**18, 2**27
# Beyond this cap float32 sigmoids are too coarse: they move a logit by cap * 1e-7.
LARGEST_TILED_CAP = 100.0


class SoftCapAttention(Attention):
    """timm's attention with logits bounded to `(-cap, cap)` by `cap * tanh(logit / cap)`.

    Pass it as `attn_layer=` to a timm ViT: parameters keep their names. Source: the locality alignment paper's
    stabilised ViTs, which cap at 30.

    Attributes:
        cap: Bound of the logits.
        flex: Use compiled FlexAttention on CUDA. Off, because its compiled form has been run on no GPU yet.
    """

    cap: float = 30.0
    flex: bool = False

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Gives tokens `[B, N, dim]` for tokens `[B, N, dim]`.

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
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed))


def soft_capped_attention(qkv: torch.Tensor, cap: float, scale: float, dropout: float = 0.0) -> torch.Tensor:
    """Gives `softmax(cap * tanh(scale * q k^T / cap)) v`, `[B, N, H, d]`, for packed `qkv`, `[B, N, 3, H, d]`.

    Logits exist one tile at a time and are computed again in the backward pass: memory grows with N, not with its
    square. In low precision the matrix products are rounded; cap and softmax are float32. There are no second
    derivatives. With dropout, or a cap above 100, plain operations compute everything at once.
    """
    if not dropout and cap <= LARGEST_TILED_CAP:
        return _Tiled.apply(qkv, cap, scale)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = cap * torch.tanh((q * scale) @ k.transpose(-2, -1) / cap)
    weights = torch.dropout(logits.softmax(dim=-1, dtype=_wide(qkv.dtype)), dropout, train=True)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def flex_soft_capped_attention(qkv: torch.Tensor, cap: float, scale: float) -> torch.Tensor:
    """Gives what `soft_capped_attention` gives, by compiled FlexAttention: for CUDA, which alone has its backward."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return _compiled_flex_attention()(q, k, v, score_mod=_score_mod(cap), scale=scale).transpose(1, 2)


@cache
def _compiled_flex_attention():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@cache  # one function for each cap, so that nothing is compiled twice
def _score_mod(cap: float):
    return lambda score, batch, head, query, key: cap * torch.tanh(score / cap)


class _Tiled(torch.autograd.Function):
    """Uses `cap * tanh(x / cap) = 2 * cap * sigmoid(2 * x / cap) - cap`, whose last term the softmax cancels.

    On CPU torch computes a sigmoid eight times as fast as a tanh. The cap's derivative, 1 - tanh^2, is
    4 * sigmoid * (1 - sigmoid).
    """

    @staticmethod
    def forward(ctx, qkv, cap, scale):
        ctx.save_for_backward(qkv)
        ctx.cap, ctx.scale = cap, scale
        out = qkv.new_empty(qkv.shape[:2] + qkv.shape[3:])
        with torch.autocast(qkv.device.type, enabled=False):
            tile = None
            for index in _tiles(qkv):
                q, k, v = (_matrices(qkv[:, :, part], index) for part in range(3))
                tile = tile or _Tile(q)
                _, weights = tile.weights(q, k, cap, scale)
                tile.product(tile.narrow(weights), v, into=_heads_first(out)[index])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (qkv,) = ctx.saved_tensors
        cap, scale = ctx.cap, ctx.scale
        grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        dq, dk, dv = (_heads_first(grad_qkv[:, :, part]) for part in range(3))
        with torch.autocast(qkv.device.type, enabled=False):
            tile = None
            for index in _tiles(qkv):
                q, k, v = (_matrices(qkv[:, :, part], index) for part in range(3))
                grad_out = _matrices(grad, index)
                tile = tile or _Tile(q)
                sigmoid, weights = tile.weights(q, k, cap, scale)
                tile.product(tile.narrow(weights).transpose(1, 2), grad_out, into=dv[index])
                # Both kernels read an element before they write it, so that in-place is safe.
                d = tile.logits(grad_out, v, tile.scratch, 1.0)
                torch.ops.aten._softmax_backward_data.out(d, weights, -1, d.dtype, grad_input=d)
                torch.ops.aten.sigmoid_backward.grad_input(d, sigmoid, grad_input=d)
                d = tile.narrow(d)
                tile.product(d, k, into=dq[index], alpha=4 * scale)
                tile.product(d.transpose(1, 2), q, into=dk[index], alpha=4 * scale)
        return grad_qkv, None, None


class _Tile:
    """Buffers for `[n, N, N]` logits, allocated once a pass: fresh memory costs more than the arithmetic on it."""

    def __init__(self, q):
        count, tokens, _ = q.shape
        wide = _wide(q.dtype)
        self.sigmoid, self.scratch, self.softmax = q.new_empty(3, count, tokens, tokens, dtype=wide)
        self.low = q.new_empty(count, tokens, tokens) if q.dtype != wide else None
        self.mixed = torch.empty_like(q, memory_format=torch.contiguous_format)

    def logits(self, a, b, out, alpha):
        """`alpha * a b^T` in `out`."""
        out = out[: len(a)]
        rounded = out if self.low is None else self.low[: len(a)]
        torch.baddbmm(rounded, a, b.transpose(1, 2), beta=0, alpha=alpha, out=rounded)
        return out if self.low is None else out.copy_(rounded)

    def weights(self, q, k, cap, scale):
        """The sigmoids of the logits, and the attention weights."""
        logits = self.logits(q, k, self.scratch, 2 * scale / cap)
        sigmoid = torch.abs(logits, out=self.sigmoid[: len(q)]).neg_().sigmoid_()
        softmax = torch.sub(logits.new_tensor(cap), sigmoid, alpha=2 * cap, out=self.softmax[: len(q)])
        capped = torch.copysign(softmax, logits, out=logits)
        return sigmoid, torch.softmax(capped, dim=-1, out=softmax)

    def narrow(self, x):
        """`x` in the precision of the inputs; it shares the one buffer there is for that."""
        return x if self.low is None else self.low[: len(x)].copy_(x)

    def product(self, a, b, into, alpha=1.0):
        """`alpha * a b` in `into`, which is `[images, heads, N, d]`."""
        mixed = self.mixed[: len(b)]
        torch.baddbmm(mixed, a, b, beta=0, alpha=alpha, out=mixed)
        into.copy_(mixed.view(into.shape))


def _tiles(qkv) -> Iterator[tuple[slice, slice]]:
    """Slices of images and heads, the largest first: some heads of one image, or all heads of some images."""
    images, tokens, _, heads, _ = qkv.shape
    tile = CPU_TILE if qkv.device.type == "cpu" else ACCELERATOR_TILE
    count = max(1, tile // tokens**2)
    some_images, some_heads = max(1, count // heads), min(count, heads)
    for image in range(0, images, some_images):
        for head in range(0, heads, some_heads):
            yield slice(image, image + some_images), slice(head, head + some_heads)


def _heads_first(x):
    return x.transpose(1, 2)


def _matrices(x, index):
    """`[n, N, d]` out of `[B, N, H, d]`: a view where the tile lies in one image."""
    return _heads_first(x)[index].flatten(0, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
