"""Checkpoints that others wrote, converted to our format."""

from pathlib import Path

import torch
from torch import Tensor

from vision_backbones.checkpoints import read_checkpoint
from vision_backbones.factory import check_spec
from vision_backbones.vit import build_vit
from vision_backbones.weights import decoder_path, fit_state, save_backbone


def convert(checkpoint: Path, out: Path, backbone: str) -> str:
    """Writes a checkpoint as an aligned backbone (see `save_backbone`), its decoder beside it; returns a summary.

    Args:
        checkpoint: What `read_checkpoint` reads, the authors' released `.pth.tar` files above all.
        out: `NAME.safetensors`, a new file.
        backbone: Registered id whose ViT the checkpoint holds.

    Raises:
        ValueError: If `out` exists, or the checkpoint does not fit the backbone.
    """
    decoder_file = decoder_path(out)
    for file in (out, decoder_file):
        if file.exists():
            raise ValueError(f"{file} exists already: choose another name, or delete it first")
    if not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} into: make it first")
    spec = check_spec(backbone)
    if spec.parts:
        raise ValueError(f"'{backbone}' is fused: a checkpoint holds one ViT, e.g. '{spec.parts[0].id}'")
    with torch.device("meta"):
        vit = build_vit(spec)
    vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_head=True)

    found = read_checkpoint(checkpoint)
    state = fit_state(vit, found.encoder, checkpoint)
    heads = vit.blocks[0].attn.num_heads
    if found.decoder:
        _check_decoder(found.decoder, vit, checkpoint, backbone)
    save_backbone(out, state, spec, found.decoder, heads)

    gone = [name for name in found.encoder if name not in state]
    folded = [name for name in gone if name.endswith(".gamma")]
    dropped = [name for name in gone if name not in folded and f"encoder.{name}" not in found.decoder]
    lines = [
        f"{out}: {_count(state)}, {'moving average (EMA)' if found.ema else 'no moving average (EMA) in the file'}",
        f"  {len(folded)} LayerScale gammas folded into the layers before them",
        f"  {len(dropped)} tensors dropped" + (f": {', '.join(dropped[:4])}, ..." if dropped else ""),
    ]
    if found.decoder:
        lines.append(f"{decoder_file}: {_count(found.decoder)}, {heads} heads")
    return "\n".join(lines)


def _check_decoder(decoder: dict[str, Tensor], vit, checkpoint: Path, backbone: str) -> None:
    """Raises ValueError unless the decoder has the tokens of the backbone and a width its heads divide."""
    tokens, heads = vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.blocks[0].attn.num_heads
    positions = decoder.get("decoder.pos_embed")
    shape = None if positions is None else tuple(positions.shape)
    if shape is None or len(shape) != 3 or shape[1] != tokens or shape[2] % heads:
        raise ValueError(
            f"the decoder in {checkpoint} does not fit '{backbone}': decoder.pos_embed is {shape}, expected [1, "
            f"{tokens}, a multiple of {heads} heads]; choose the backbone with the image size of the checkpoint"
        )


def _count(state: dict[str, Tensor]) -> str:
    return f"{len(state)} tensors, {sum(value.numel() for value in state.values()):,} parameters"
