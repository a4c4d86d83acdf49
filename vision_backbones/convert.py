"""Checkpoints that others wrote, converted to our format."""

from pathlib import Path

import torch

from vision_backbones.backbone_files import decoder_path, write_converted
from vision_backbones.factory import check_spec
from vision_backbones.vit import build_vit, layout


def convert(checkpoint: Path, out: Path, backbone: str) -> str:
    """Writes a checkpoint as an aligned backbone (see `save_backbone`), its decoder beside it; returns a summary.

    Args:
        checkpoint: What `read_checkpoint` reads, the authors' released `.pth.tar` files above all.
        out: `NAME.safetensors`, a new file.
        backbone: Registered id whose ViT the checkpoint holds.

    Raises:
        ValueError: If `out` exists, or the checkpoint does not fit the backbone.
    """
    for file in (out, decoder_path(out)):
        if file.exists():
            raise ValueError(f"{file} exists already: choose another name, or delete it first")
    if not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} to write {out.name} into: make it first")
    spec = check_spec(backbone)
    if spec.parts:
        raise ValueError(f"'{backbone}' is fused: a checkpoint holds one ViT, e.g. '{spec.parts[0].id}'")
    layout(spec)  # refuses what is no ViT
    with torch.device("meta"):
        vit = build_vit(spec)
    vit.prune_intermediate_layers([len(vit.blocks) - 1], prune_head=True)
    return write_converted(checkpoint, out, spec, vit)
