"""Aligned backbones as files: `NAME.safetensors`, and its decoder beside it."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vision_backbones.files import replacing
from vision_backbones.spec import BackboneSpec
from vision_backbones.state_dicts import HEAD, fit_state

if TYPE_CHECKING:
    from torch import Tensor, nn


def decoder_path(weights: Path) -> Path:
    """Returns where the decoder of the backbone in `weights` lies: `NAME.decoder.safetensors` beside it."""
    return weights.with_suffix(".decoder.safetensors")


def save_backbone(
    path: Path,
    state: "dict[str, Tensor]",
    spec: BackboneSpec,
    decoder: "dict[str, Tensor] | None" = None,
    decoder_heads: int | None = None,
    alignment: dict | None = None,
    **metadata: str,
) -> None:
    """Writes an aligned backbone, and its decoder beside it, each file all or nothing; replaces what is there.

    Args:
        path: `NAME.safetensors`.
        state: State dict of a timm ViT; its heads are left out.
        spec: What rebuilds the ViT; travels in the metadata, without `weights`, which will be this file.
        decoder: `decoder.*` and `encoder.head.*` of a MaskEmbed student.
        decoder_heads: Attention heads of the decoder.
        alignment: What the decoder was trained against (`maskembed.view.Alignment` as a dict); in its metadata.
        metadata: More strings for the metadata of the backbone.

    Raises:
        ValueError: If `path` does not end with .safetensors, or a decoder comes without its number of heads.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"an aligned backbone is written as NAME.safetensors, got {path}")
    if decoder and not decoder_heads:
        raise ValueError(f"{path}: decoder_heads must say how many attention heads the decoder has")
    # The decoder first: a backbone that is there has the decoder it was trained with.
    if decoder:
        about = {"decoder": json.dumps({"num_heads": decoder_heads})}
        about |= {"alignment": json.dumps(alignment)} if alignment else {}
        write_tensors(decoder_path(path), decoder, about)
    else:
        decoder_path(path).unlink(missing_ok=True)
    spec = dataclasses.replace(spec, weights=None)
    headless = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    write_tensors(path, headless, {**metadata, "spec": json.dumps(spec.to_dict())})


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Writes a safetensors file, all or nothing: beside its place, then renamed."""
    from safetensors.torch import save_file

    with replacing(path) as tmp_path:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, tmp_path, metadata)


def write_converted(checkpoint: Path, out: Path, spec: BackboneSpec, vit: "nn.Module") -> str:
    """Writes a checkpoint as a backbone (see `save_backbone`), its decoder beside it; returns a summary.

    Args:
        checkpoint: What `read_checkpoint` reads.
        out: `NAME.safetensors`; what is there is replaced.
        spec: Resolved, of the ViT that the checkpoint holds.
        vit: That ViT, headless; may be on the meta device.

    Raises:
        ValueError: If the checkpoint cannot be read, would run code, or does not fit.
    """
    from vision_backbones.checkpoints import read_checkpoint

    found = read_checkpoint(checkpoint)
    state = fit_state(vit, found.encoder, checkpoint)
    heads = vit.blocks[0].attn.num_heads
    if found.decoder:
        _check_decoder(found.decoder, vit, checkpoint, spec.id)
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
        lines.append(f"{decoder_path(out)}: {_count(found.decoder)}, {heads} heads")
    return "\n".join(lines)


def _check_decoder(decoder: "dict[str, Tensor]", vit, checkpoint: Path, backbone: str) -> None:
    """Raises ValueError unless the decoder has the tokens of the backbone and a width its heads divide."""
    tokens, heads = vit.patch_embed.num_patches + vit.num_prefix_tokens, vit.blocks[0].attn.num_heads
    positions = decoder.get("decoder.pos_embed")
    shape = None if positions is None else tuple(positions.shape)
    if shape is None or len(shape) != 3 or shape[1] != tokens or shape[2] % heads:
        raise ValueError(
            f"the decoder in {checkpoint} does not fit '{backbone}': decoder.pos_embed is {shape}, expected [1, "
            f"{tokens}, a multiple of {heads} heads]; choose the backbone with the image size of the checkpoint"
        )


def _count(state: "dict[str, Tensor]") -> str:
    return f"{len(state)} tensors, {sum(value.numel() for value in state.values()):,} parameters"
