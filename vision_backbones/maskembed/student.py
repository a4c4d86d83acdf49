"""What is trained: an encoder of whole images, and a decoder that predicts the teacher from its masked patches."""

import torch
from timm.layers import Mlp
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block
from torch import nn

from vision_backbones.maskembed.masked_forward import masked_features
from vision_backbones.maskembed.reference_quirks import final_norm
from vision_backbones.names import suggest
from vision_backbones.soft_cap import SoftCapAttention

HEADS = ("linear", "mlp")
DECODER_EPS = 1e-5


class MaskEmbedStudent(nn.Module):
    """Predicts what the teacher saw through each mask, from patch embeddings of the whole image (paper section 3).

    Args:
        vit: A timm ViT, usually soft-capped and with the teacher's weights; its head is replaced.
        target_dim: Channels of the teacher.
        head: `linear` or `mlp`, from the encoder to the decoder; its last layer starts at zero.
        decoder_blocks: ViT blocks of the decoder; 0 leaves position embedding, norm and linear head.
        decoder_width: Channels of the decoder; the encoder's if None.
        decoder_heads: Attention heads of the decoder; the encoder's if None.
        decoder_qk_norm: Whether the decoder normalises queries and keys; as the encoder does if None.
        decoder_qkv_bias: Whether the decoder has biases of queries, keys and values.
        prefix_only: Predict prefix tokens alone.
        as_reference: Start from `reference_quirks.final_norm` instead of the ViT's own.

    Raises:
        ValueError: The head is unknown, or the decoder cannot be built.
    """

    def __init__(
        self,
        vit: nn.Module,
        target_dim: int,
        *,
        head: str = "linear",
        decoder_blocks: int = 2,
        decoder_width: int | None = None,
        decoder_heads: int | None = None,
        decoder_qk_norm: bool | None = None,
        decoder_qkv_bias: bool = True,
        prefix_only: bool = False,
        as_reference: bool = False,
    ):
        super().__init__()
        width = decoder_width or vit.embed_dim
        heads = vit.blocks[0].attn.num_heads if decoder_heads is None else decoder_heads
        if width % heads or heads < 1 or decoder_blocks < 0:
            raise ValueError(
                f"a decoder of {decoder_blocks} blocks, {width} wide with {heads} heads cannot be built: expected 0 or "
                "more blocks, and a width that is a multiple of the heads"
            )
        block = vit.blocks[0]
        if decoder_qk_norm is None:
            decoder_qk_norm = not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity)
        self.encoder = with_head(vit, width, head, as_reference)
        self.decoder = Decoder(
            width, target_dim, tokens=vit.num_prefix_tokens + vit.patch_embed.num_patches, blocks=decoder_blocks,
            heads=heads, act_layer=type(block.mlp.act), qk_norm=decoder_qk_norm, qkv_bias=decoder_qkv_bias,
        )  # fmt: skip
        self.prefix_only = prefix_only

    def set_grad_checkpointing(self) -> None:
        """Computes blocks again for the gradients instead of keeping what is inside them: less memory, more time."""
        self.encoder.set_grad_checkpointing()
        self.decoder.grad_checkpointing = True

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B, prefix + patches, width]` of whole images `[B, 3, H, W]`."""
        return self.encoder.head(self.encoder.forward_features(pixels))

    def forward(self, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[B * R, tokens, target_dim]` for pixels `[B, 3, H, W]` and masks `[B * R, patches]`."""
        prefix = self.encoder.num_prefix_tokens
        tokens = self.decoder(self.encode(pixels), nn.functional.pad(masks.bool(), (prefix, 0)))
        return tokens[:, :prefix] if self.prefix_only else tokens


class Decoder(nn.Module):
    """A few ViT blocks, without soft cap, between masked embeddings and the teacher's channels."""

    def __init__(
        self, width: int, target_dim: int, *, tokens: int, blocks: int, heads: int, act_layer, qk_norm: bool,
        qkv_bias: bool,
    ):  # fmt: skip
        super().__init__()
        kwargs = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "init_values": 1e-6, "act_layer": act_layer}
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        kwargs |= {"norm_layer": nn.LayerNorm, "attn_layer": SoftCapAttention}
        self.blocks = nn.Sequential(*[Block(width, heads, **kwargs) for _ in range(blocks)])
        for block in self.blocks:
            block.attn.cap = None
        self.grad_checkpointing = False
        self.norm = nn.LayerNorm(width, eps=DECODER_EPS)
        self.head = nn.Linear(width, target_dim)

    def forward(self, embeddings: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """`[B * R, N, target_dim]` from embeddings `[B, N, width]`, of which `kept` `[B * R, N]` are not zeroed."""
        repeated = embeddings.repeat_interleave(len(kept) // len(embeddings), dim=0)
        x = repeated * kept[..., None].to(repeated.dtype) + self.pos_embed
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.head(self.norm(x))


class MaskedImageStudent(nn.Module):
    """Sees masked images and predicts the teacher's tokens of the whole ones: masked image modelling.

    Args:
        vit: A timm ViT; its head is replaced.
        target_dim: Channels of the teacher.
        head: `linear` or `mlp`; its last layer starts at zero.
        as_reference: As for `MaskEmbedStudent`.
    """

    def __init__(self, vit: nn.Module, target_dim: int, *, head: str = "linear", as_reference: bool = False):
        super().__init__()
        self.encoder = with_head(vit, target_dim, head, as_reference)

    def set_grad_checkpointing(self) -> None:
        """As `MaskEmbedStudent`."""
        self.encoder.set_grad_checkpointing()

    def forward(self, pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Reconstructions `[B * R, tokens, target_dim]` for pixels `[B, 3, H, W]` and masks `[B * R, patches]`."""
        return self.encoder.head(masked_features(self.encoder, pixels, masks))


def with_head(vit: nn.Module, width: int, head: str, as_reference: bool) -> nn.Module:
    """The ViT without pooling and with a new head to `width` channels that gives zero.

    Where a ViT normalises after pooling (BEiT, EVA-02), its tokens have no final norm, as in the reference.

    Raises:
        ValueError: The head is unknown.
    """
    if head not in HEADS:
        raise ValueError(f"unknown student head {head!r}: {suggest(head, HEADS)}")
    vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_head=True)
    if as_reference and not isinstance(vit.norm, nn.Identity):
        vit.norm = final_norm(vit)
    if head == "linear":
        vit.head = last = nn.Linear(vit.embed_dim, width)
    else:
        mlp = vit.blocks[0].mlp
        hidden = (mlp.fc1 if hasattr(mlp, "fc1") else mlp.fc1_g).out_features
        vit.head = Mlp(vit.embed_dim, hidden, width, act_layer=type(mlp.act))
        last = vit.head.fc2
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return vit
