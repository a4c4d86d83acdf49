"""Projectors: vision features `[B, N, vision_dim]` to LLM embeddings `[B, N, llm_dim]`.

Parameter names are those of the reference implementation, less its inner "projector." (peft, told to save the module
called projector, would find two).
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import Mlp, get_act_layer
from timm.models.vision_transformer import Block
from torch import nn

from vision_backbones import BackboneSpec
from vision_backbones.backbone_files import decoder_path
from vision_backbones.names import registered, suggest
from vision_backbones.state_dicts import check_numbers
from vision_backbones.weights import find_weights, read_header

TAIL_BLOCKS = 2  # ViT blocks that the `truncated` projector takes over from its backbone


@dataclass(frozen=True)
class Sizes:
    """What a projector is built for.

    Attributes:
        vision_dim: Width of the backbone's features.
        llm_dim: Width of the LLM.
        num_tokens: Tokens that the backbone gives, prefix tokens included.
        num_prefix_tokens: Of which prefix tokens.
        num_heads: Attention heads of the backbone; None if it is fused.
        act_layer: Activation of the backbone's blocks.
        tail: The backbone's last blocks and its final norm, for `truncated`.
        options: The decoder's own shape, for `pretrained-decoder`; activations by timm's names.
    """

    vision_dim: int
    llm_dim: int
    num_tokens: int | None = None
    num_prefix_tokens: int = 0
    num_heads: int | None = None
    act_layer: type[nn.Module] | None = nn.GELU
    tail: tuple | None = None
    options: dict[str, Any] | None = None


Builder = Callable[[Sizes], nn.Module]
PROJECTORS: dict[str, Builder] = {}


def register_projector(name: str) -> Callable[[Builder], Builder]:
    """A decorator that makes `--projector NAME` build what a function returns, from features to embeddings.

    Raises:
        ValueError: the name is taken.
    """
    return registered("projector", name, PROJECTORS)


def check_projector(name: str, *, fused: bool, aligned: bool) -> None:
    """Raises ValueError when the projector is unknown or does not fit the backbone."""
    if name not in PROJECTORS:
        raise ValueError(
            f"unknown projector {name!r}: {suggest(name, PROJECTORS)} If it is yours, import its module first, or name "
            "it by --plugins"
        )
    if name == "fused-gelu-mlp" and not fused:
        raise ValueError("projector 'fused-gelu-mlp' joins several backbones, this is a single one: use 'gelu-mlp'")
    if name in ("transformer", "pretrained-decoder", "truncated") and fused:
        raise ValueError(f"projector {name!r} continues a single ViT, this backbone is fused: use 'fused-gelu-mlp'")
    if name == "pretrained-decoder" and not aligned:
        raise ValueError(
            "projector 'pretrained-decoder' re-uses the decoder of a locality-aligned backbone, this one is not "
            "aligned, or another block than its last is read: choose an '-aligned' backbone, or 'transformer' for the "
            "same layers from scratch"
        )


def zero_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer that starts at zero, so that training begins from the LLM as it was."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers from width to width with GELU between them, applied to every token alone."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class TransformerProjector(nn.Module):
    """ViT blocks with a position embedding: the shape of the MaskEmbed decoder (paper section 3.2).

    Args:
        vision_dim: width of the features.
        llm_dim: width of the LLM.
        num_tokens: tokens in the features, prefix tokens included.
        num_heads: attention heads of a block.
        zero_prefix: how many leading tokens are zeroed after `in_proj`, as the MaskEmbed decoder never saw any.
        act_layer: activation inside the blocks; a decoder's own when its weights are re-used.
        depth: number of blocks.
        width: of the tokens inside; `vision_dim` if None.
        mlp_hidden: hidden width of a block's MLP; 4 times `width` if None.
        qk_norm: queries and keys are normalised.
        qkv_bias: queries, keys and values have biases.
        in_hidden: `in_proj` is an MLP of this hidden width, or a linear layer if None.
    """

    def __init__(
        self, vision_dim, llm_dim, *, num_tokens, num_heads, zero_prefix=0, act_layer=nn.GELU,
        depth=2, width=None, mlp_hidden=None, qk_norm=False, qkv_bias=True, in_hidden=None,
    ):  # fmt: skip
        super().__init__()
        width = width or vision_dim
        self.zero_prefix = zero_prefix
        if in_hidden is None:
            self.in_proj = nn.Linear(vision_dim, width)
        else:
            self.in_proj = Mlp(vision_dim, in_hidden, width, act_layer=act_layer)
        self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, width) * 0.02)
        # timm rounds ratio * width down: half a channel more keeps the quotient of two integers exact.
        mlp_ratio = 4.0 if mlp_hidden is None else (mlp_hidden + 0.5) / width
        options = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "init_values": 1e-6, "act_layer": act_layer}
        self.blocks = nn.Sequential(
            *[Block(width, num_heads, mlp_ratio, norm_layer=nn.LayerNorm, **options) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, llm_dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[B, N, vision_dim] -> [B, N, llm_dim]`."""
        x = self.in_proj(features)
        if self.zero_prefix:
            x = torch.cat([torch.zeros_like(x[:, : self.zero_prefix]), x[:, self.zero_prefix :]], dim=1)
        return self.head(self.norm(self.blocks(x + self.pos_embed)))

    def load_decoder(self, state: dict[str, torch.Tensor]) -> None:
        """Takes over a MaskEmbed student's `decoder.*` and `encoder.head.*`; the head to the LLM starts at zero.

        Raises:
            ValueError: when the decoder does not fit, naming the first key that does not.
        """
        taken = {k.removeprefix("decoder."): v for k, v in state.items() if k.startswith("decoder.")}
        taken = {k: v for k, v in taken.items() if not k.startswith("head.")}
        taken |= {k.replace("encoder.head", "in_proj"): v for k, v in state.items() if k.startswith("encoder.head.")}
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("head.")}
        for key in sorted(own.keys() | taken.keys()):
            given, wanted = (tuple(d[key].shape) if key in d else "absent" for d in (taken, own))
            if given != wanted:
                raise ValueError(f"the decoder does not fit this projector: {key} is {given}, expected {wanted}")
        check_numbers(taken, "of the decoder")
        self.load_state_dict(taken, strict=False)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def decoder_options(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """The options of `TransformerProjector` that give it the shape of a MaskEmbed decoder, less its heads.

    Raises:
        ValueError: when `shapes`, by name, are not those of `decoder.*` and `encoder.head.*`.
    """
    if "decoder.pos_embed" not in shapes:
        raise ValueError(f"not a MaskEmbed decoder: no decoder.pos_embed among {', '.join(list(shapes)[:3])}, ...")
    hidden, in_hidden = (
        shapes.get(f"{name}.fc1.weight", [None])[0] for name in ("decoder.blocks.0.mlp", "encoder.head")
    )
    depth = len({name.split(".")[2] for name in shapes if name.startswith("decoder.blocks.")})
    return {
        "depth": depth,
        "width": shapes["decoder.pos_embed"][-1],
        "mlp_hidden": hidden,
        "qk_norm": "decoder.blocks.0.attn.q_norm.weight" in shapes,
        "qkv_bias": not depth or "decoder.blocks.0.attn.qkv.bias" in shapes,
        "in_hidden": in_hidden,
    }


@register_projector("linear")
def _linear(sizes: Sizes) -> nn.Module:
    """One matrix."""
    return zero_linear(sizes.vision_dim, sizes.llm_dim)


@register_projector("gelu-mlp")
def _gelu_mlp(sizes: Sizes) -> nn.Module:
    """Two layers with GELU, as in LLaVA 1.5."""
    return mlp(sizes.vision_dim, sizes.llm_dim, sizes.llm_dim)


@register_projector("fused-gelu-mlp")
def _fused_gelu_mlp(sizes: Sizes) -> nn.Module:
    """Three layers with GELU, for fused backbones."""
    return mlp(sizes.vision_dim, sizes.vision_dim * 4, sizes.llm_dim, sizes.llm_dim)


@register_projector("transformer")
def _transformer(sizes: Sizes) -> nn.Module:
    """Two ViT blocks and a matrix, from scratch."""
    own = {"num_tokens": sizes.num_tokens, "num_heads": sizes.num_heads}
    return TransformerProjector(sizes.vision_dim, sizes.llm_dim, **own)


@register_projector("pretrained-decoder")
def _pretrained_decoder(sizes: Sizes) -> nn.Module:
    """The MaskEmbed decoder of an aligned backbone, and a matrix."""
    own = {"num_heads": sizes.num_heads, "zero_prefix": sizes.num_prefix_tokens, "act_layer": sizes.act_layer}
    own |= sizes.options or {}
    own["act_layer"] = get_act_layer(own["act_layer"])
    return TransformerProjector(sizes.vision_dim, sizes.llm_dim, num_tokens=sizes.num_tokens, **own)


@register_projector("truncated")
def _truncated(sizes: Sizes) -> nn.Module:
    """The backbone's own last two blocks, trained, and a matrix."""
    blocks, norm = sizes.tail
    return nn.Sequential(*blocks, norm, zero_linear(sizes.vision_dim, sizes.llm_dim))


def build_projector(name: str, vision_dim: int, llm_dim: int, **sizes) -> nn.Module:
    """The projector called `name`, newly initialised; `sizes` are the other fields of `Sizes`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PROJECTORS:
        raise ValueError(
            f"unknown projector {name!r}: {suggest(name, PROJECTORS)} If it is yours, import its module first, or name "
            "it by --plugins"
        )
    return PROJECTORS[name](Sizes(vision_dim, llm_dim, **sizes))


def decoder_file(spec: BackboneSpec) -> Path:
    """The MaskEmbed decoder of an aligned backbone: `NAME.decoder.safetensors` beside its weights `NAME.safetensors`.

    Raises:
        ValueError: it is not there.
    """
    weights = find_weights(spec)
    file = decoder_path(weights) if weights else None
    if file is None or not file.is_file():
        raise ValueError(
            f"projector 'pretrained-decoder' needs the decoder that backbone '{spec.id}' was aligned with: no file "
            f"{file or 'for weights of timm'}; put it there, or choose 'transformer' for the same layers from scratch"
        )
    return file


def decoder_config(file: Path) -> dict[str, Any]:
    """The `projector_config` of a `pretrained-decoder` with the weights in `file`, of which only the header is read.

    Raises:
        ValueError: the file is not a MaskEmbed decoder.
    """
    shapes, metadata = read_header(file)
    try:
        return decoder_options(shapes) | json.loads(metadata.get("decoder", "{}"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
