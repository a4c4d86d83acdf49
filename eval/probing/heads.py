"""What is trained on top of a backbone's tokens: logits `[B, N, C]`, of every patch or (N = 1) of the image."""

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import nn

from eval.probing.backbone import ProbedBackbone
from vision_backbones.names import suggest

HEADS = ("linear", "mlp", "transformer", "transformer-cls", "transformer-separate")
HIDDEN = 1024  # of the mlp
DEPTH = 2  # blocks of a transformer


class TransformerHead(nn.Module):
    """Two ViT blocks between norms and a linear layer, with a position embedding of every token.

    Args:
        embed_dim: Channels of a token.
        num_heads: Attention heads.
        num_classes: C.
        num_tokens: Tokens that come in, prefix tokens first.
        num_prefix_tokens: How many of them are prefix tokens.
        output: `suffix`, a logit for every patch; `prefix`, the mean of the prefix tokens' logits; `mean`, of all.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, num_classes: int, *, num_tokens: int, num_prefix_tokens: int, output: str
    ):
        super().__init__()
        self.num_prefix_tokens, self.output = num_prefix_tokens, output
        self.pos_embed = nn.Parameter(torch.randn(num_tokens, embed_dim) * 0.02)
        self.norm_pre, self.blocks, self.norm, self.head = _layers(embed_dim, num_heads, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits `[B, patches or 1, C]` of tokens `[B, num_tokens, embed_dim]`."""
        x = self.norm(self.blocks(self.norm_pre(tokens + self.pos_embed)))
        if self.output == "suffix":
            return self.head(x[:, self.num_prefix_tokens :])
        return self.head((x[:, : self.num_prefix_tokens] if self.output == "prefix" else x).mean(1, keepdim=True))


class LatentHead(nn.Module):
    """As `TransformerHead`, but learned latent tokens, one a patch, read the answer from the backbone's tokens.

    The backbone's tokens get no position embedding: what is where must be in them.
    """

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, num_patches: int):
        super().__init__()
        self.latent_embed = nn.Parameter(torch.randn(num_patches, embed_dim) * 0.02)
        self.norm_pre, self.blocks, self.norm, self.head = _layers(embed_dim, num_heads, num_classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits `[B, num_patches, C]` of any number of tokens `[B, N, embed_dim]`."""
        x = torch.cat([tokens, self.latent_embed.expand(len(tokens), -1, -1)], dim=1)
        return self.head(self.norm(self.blocks(self.norm_pre(x))[:, tokens.shape[1] :]))


def _layers(embed_dim: int, num_heads: int, num_classes: int) -> tuple[nn.Module, ...]:
    def block() -> Block:
        return Block(embed_dim, num_heads, qkv_bias=False, init_values=0.01, norm_layer=nn.LayerNorm)

    blocks = nn.Sequential(*[block() for _ in range(DEPTH)])
    return nn.LayerNorm(embed_dim), blocks, nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)


def check_head(head: str, labels: str) -> None:
    """Raises ValueError for an unknown head, or one that has no answer of the kind of labels."""
    if head not in HEADS:
        raise ValueError(f"unknown head '{head}': {suggest(head, HEADS)}")
    if head in ("transformer-cls", "transformer-separate") and labels == "global-union":
        raise ValueError(f"head '{head}' answers for every patch: use union or majority labels, not global-union")


def tokens_for(head: str, labels: str) -> str:
    """Which tokens a head takes from the backbone (see `ProbedBackbone`), as in the paper's code."""
    if head in ("linear", "mlp"):
        return "prefix" if labels == "global-union" else "suffix"
    return "prefix" if head == "transformer-cls" else "all"


def make_head(head: str, labels: str, backbone: ProbedBackbone, num_classes: int) -> nn.Module:
    """Returns a head with random weights for what `backbone` gives with `tokens_for(head, labels)`.

    Raises:
        ValueError: As `check_head`.
    """
    check_head(head, labels)
    width, prefix = backbone.embed_dim, backbone.num_prefix_tokens
    patches = backbone.grid[0] * backbone.grid[1]
    if head == "linear":
        return nn.Linear(width, num_classes)
    if head == "mlp":
        return Mlp(width, HIDDEN, num_classes)
    if head == "transformer":
        output = "suffix" if labels != "global-union" else "prefix" if prefix else "mean"
        sizes = {"num_tokens": patches + prefix, "num_prefix_tokens": prefix}
        return TransformerHead(width, backbone.num_heads, num_classes, **sizes, output=output)
    return LatentHead(width, backbone.num_heads, num_classes, num_patches=patches)
