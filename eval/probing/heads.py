"""What is trained on top of a backbone's tokens: logits `[B, N, C]`, of every patch or (N = 1) of the image."""

from itertools import pairwise

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import nn

from eval.probing.backbone import ProbedBackbone
from vision_backbones.names import suggest

HEADS = ("linear", "mlp", "transformer", "transformer-cls", "transformer-separate")
HIDDEN = 1024  # units of a hidden layer of the mlp
DEPTH = 2  # blocks of a transformer


class TransformerHead(nn.Module):
    """ViT blocks between norms and a linear layer, with a position embedding of every token.

    Args:
        embed_dim: Channels of a token.
        num_heads: Attention heads.
        num_classes: C.
        num_tokens: Tokens that come in, prefix tokens first.
        num_prefix_tokens: How many of them are prefix tokens.
        output: `suffix`, a logit for every patch; `prefix`, the mean of the prefix tokens' logits; `mean`, of all.
        width: Channels of the blocks, to which a linear layer brings tokens first; None for those of a token.
        depth: Number of blocks.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        *,
        num_tokens: int,
        num_prefix_tokens: int,
        output: str,
        width: int | None = None,
        depth: int = DEPTH,
    ):
        super().__init__()
        self.num_prefix_tokens, self.output = num_prefix_tokens, output
        self.project, width = _projection(embed_dim, width)
        self.pos_embed = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.norm_pre, self.blocks, self.norm, self.head = _layers(width, num_heads, num_classes, depth)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits `[B, patches or 1, C]` of tokens `[B, num_tokens, embed_dim]`."""
        x = self.norm(self.blocks(self.norm_pre(self.project(tokens) + self.pos_embed)))
        if self.output == "suffix":
            return self.head(x[:, self.num_prefix_tokens :])
        return self.head((x[:, : self.num_prefix_tokens] if self.output == "prefix" else x).mean(1, keepdim=True))


class LatentHead(nn.Module):
    """As `TransformerHead`, but learned latent tokens, one a patch, read the answer from the backbone's tokens.

    The backbone's tokens get no position embedding: what is where must be in them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        *,
        num_patches: int,
        width: int | None = None,
        depth: int = DEPTH,
    ):
        super().__init__()
        self.project, width = _projection(embed_dim, width)
        self.latent_embed = nn.Parameter(torch.randn(num_patches, width) * 0.02)
        self.norm_pre, self.blocks, self.norm, self.head = _layers(width, num_heads, num_classes, depth)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns logits `[B, num_patches, C]` of any number of tokens `[B, N, embed_dim]`."""
        x = torch.cat([self.project(tokens), self.latent_embed.expand(len(tokens), -1, -1)], dim=1)
        return self.head(self.norm(self.blocks(self.norm_pre(x))[:, tokens.shape[1] :]))


def _projection(embed_dim: int, width: int | None) -> tuple[nn.Module, int]:
    """What brings tokens to the width of the blocks, and that width."""
    return (nn.Identity(), embed_dim) if width is None else (nn.Linear(embed_dim, width), width)


def _layers(width: int, num_heads: int, num_classes: int, depth: int) -> tuple[nn.Module, ...]:
    def block() -> Block:
        return Block(width, num_heads, qkv_bias=False, init_values=0.01, norm_layer=nn.LayerNorm)

    blocks = nn.Sequential(*[block() for _ in range(depth)])
    return nn.LayerNorm(width), blocks, nn.LayerNorm(width), nn.Linear(width, num_classes)


def _mlp(embed_dim: int, hidden: int, num_classes: int, depth: int) -> nn.Module:
    """An MLP of `depth` hidden layers, each followed by GELU."""
    if depth == 1:
        return Mlp(embed_dim, hidden, num_classes)
    sizes = [embed_dim, *[hidden] * depth]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


def check_head(head: str, labels: str, width: int | None = None, depth: int | None = None) -> None:
    """Raises ValueError for an unknown head, one that has no answer of the kind of labels, or sizes it has not."""
    if head not in HEADS:
        raise ValueError(f"unknown head '{head}': {suggest(head, HEADS)}")
    if head in ("transformer-cls", "transformer-separate") and labels == "global-union":
        raise ValueError(f"head '{head}' answers for every patch: use union or majority labels, not global-union")
    given = [f"--{name} {size}" for name, size in (("head_width", width), ("head_depth", depth)) if size is not None]
    if head == "linear" and given:
        raise ValueError(f"{' and '.join(given)}: the linear head is a single layer; choose --head mlp or transformer")


def tokens_for(head: str, labels: str) -> str:
    """Which tokens a head takes from the backbone (see `ProbedBackbone`), as in the paper's code."""
    if head in ("linear", "mlp"):
        return "prefix" if labels == "global-union" else "suffix"
    return "prefix" if head == "transformer-cls" else "all"


def make_head(
    head: str,
    labels: str,
    backbone: ProbedBackbone,
    num_classes: int,
    *,
    width: int | None = None,
    depth: int | None = None,
) -> nn.Module:
    """Returns a head with random weights for what `backbone` gives with `tokens_for(head, labels)`.

    Args:
        head: One of `HEADS`.
        labels: Their kind.
        backbone: Whose tokens it takes.
        num_classes: C.
        width: Hidden units of the mlp, or channels of a transformer's blocks; None for `HIDDEN`, or the backbone's.
        depth: Hidden layers of the mlp, or blocks of a transformer; None for 1, or `DEPTH`.

    Raises:
        ValueError: As `check_head`; or the backbone's attention heads do not divide the width.
    """
    check_head(head, labels, width, depth)
    embed_dim, num_heads, prefix = backbone.embed_dim, backbone.num_heads, backbone.num_prefix_tokens
    patches = backbone.grid[0] * backbone.grid[1]
    if head == "linear":
        return nn.Linear(embed_dim, num_classes)
    if head == "mlp":
        return _mlp(embed_dim, width or HIDDEN, num_classes, depth or 1)
    if width is not None and width % num_heads:
        near = max(width // num_heads * num_heads, num_heads)
        raise ValueError(
            f"--head_width is {width}: expected a multiple of the {num_heads} attention heads of {backbone.spec.id}, "
            f"such as {near} or {near + num_heads}"
        )
    sizes = {"width": width, "depth": depth or DEPTH}
    if head == "transformer":
        output = "suffix" if labels != "global-union" else "prefix" if prefix else "mean"
        sizes |= {"num_tokens": patches + prefix, "num_prefix_tokens": prefix}
        return TransformerHead(embed_dim, num_heads, num_classes, **sizes, output=output)
    return LatentHead(embed_dim, num_heads, num_classes, **sizes, num_patches=patches)
