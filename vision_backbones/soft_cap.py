"""Soft-capped attention, which locality-aligned ViTs are trained with."""

import torch
from timm.layers import Attention


class SoftCapAttention(Attention):
    """timm's attention with logits bounded to `(-cap, cap)` by `cap * tanh(logit / cap)`.

    Pass it as `attn_layer=` to a timm ViT: parameters keep their names. The logits are explicit, since fused
    kernels cannot cap them. Source: the locality alignment paper's stabilised ViTs, which cap at 30.
    """

    cap: float = 30.0

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Gives tokens `[B, N, dim]` for tokens `[B, N, dim]`.

        Raises:
            ValueError: If a mask is given; image tokens all see each other.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("SoftCapAttention takes no attention mask: image tokens all see each other")
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        logits = (self.q_norm(q) * self.scale) @ self.k_norm(k).transpose(-2, -1)
        weights = self.attn_drop((self.cap * torch.tanh(logits / self.cap)).softmax(dim=-1))
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(self.norm(mixed)))
