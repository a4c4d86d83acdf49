"""Weights files of one's own: find, read, write them, load them strictly.

A locality-aligned backbone is `NAME.safetensors`, timm's names of a headless ViT with the backbone's spec in the
metadata, and beside it `NAME.decoder.safetensors`, what MaskEmbed trained on top of it.
"""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vision_backbones.files import replacing
from vision_backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

ASSETS = Path(__file__).parent / "assets"
MOST_HEADER = 100_000_000  # bytes, as the safetensors library has it
HEAD = ("head.", "fc_norm.", "attn_pool.")
LAYER_SCALE = re.compile(r"(blocks\.\d+\.)ls([12])\.gamma")


def weights_folder() -> Path:
    """Returns the folder of weights files: `$VISION_BACKBONES_WEIGHTS`, by default `~/.cache/vision_backbones`."""
    return Path(os.environ.get("VISION_BACKBONES_WEIGHTS") or "~/.cache/vision_backbones").expanduser()


def find_weights(spec: BackboneSpec) -> Path | None:
    """Returns the file `spec.weights` stands for, or None where weights come from timm.

    A name is looked up, as `NAME.safetensors`, inside this package, then in `weights_folder()`; a path (with a slash
    or the suffix of a weights file) is taken as it is.

    Raises:
        ValueError: If the file is not there; says where it was looked for and how to make it.
    """
    if spec.weights is None:
        return None
    from vision_backbones.checkpoints import SUFFIXES  # imports torch

    if "/" in spec.weights or spec.weights.endswith(SUFFIXES):
        candidates = [Path(spec.weights).expanduser()]
    else:
        candidates = [folder / f"{spec.weights}.safetensors" for folder in (ASSETS, weights_folder())]
    for path in candidates:
        if path.is_file():
            return path
    if spec.soft_cap:
        remedy = (
            "make it with recipes/align.py (MaskEmbed), convert a released checkpoint to it "
            f"(`python -m vision_backbones convert IN.pth.tar {candidates[-1]} --backbone {spec.id}`) or copy it there"
        )
    else:
        remedy = "write it there as safetensors with timm's parameter names"
    raise ValueError(
        f"backbone '{spec.id}': no weights file {' or '.join(map(str, candidates))}; {remedy}, set "
        "VISION_BACKBONES_WEIGHTS to the folder that holds it, or pass pretrained=False for random weights"
    )


def decoder_path(weights: Path) -> Path:
    """Returns where the decoder of the backbone in `weights` lies: `NAME.decoder.safetensors` beside it."""
    return weights.with_suffix(".decoder.safetensors")


def read_header(path: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Returns the shapes by tensor name and the metadata of a safetensors file; imports neither torch nor safetensors.

    Raises:
        ValueError: If it is not a safetensors file.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if length > min(os.path.getsize(path), MOST_HEADER):
                raise ValueError(
                    f"its header has {length:,} bytes, expected at most {MOST_HEADER:,} and inside the file"
                )
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if end > os.path.getsize(path):
                raise ValueError(f"it is cut off: {os.path.getsize(path):,} bytes of {end:,}")
            return {name: entry["shape"] for name, entry in header.items()}, metadata
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a safetensors file: {str(error)[:200]}") from error


def load_weights(vit: "nn.Module", path: Path) -> None:
    """Loads a weights file into a headless timm ViT, strictly.

    It may be safetensors with timm's names, a checkpoint that timm knows to convert (OpenAI's CLIP, DINOv2, ...), or
    one of MaskEmbed training (see `read_checkpoint`). Pickled files (.pth, .pt, .bin, .pth.tar) never run code.

    Raises:
        ValueError: If the file cannot be read or does not fit (see `fit_state`).
    """
    from vision_backbones.checkpoints import read_checkpoint

    vit.load_state_dict(fit_state(vit, read_checkpoint(path).encoder, path))


def fit_state(vit: "nn.Module", found: "dict[str, Tensor]", source: Path) -> "dict[str, Tensor]":
    """Returns the entries of a state dict as the model's own, each of its name and shape.

    Names are converted as timm does for the architecture; position embeddings of another resolution are interpolated;
    LayerScale is folded into the layer before it where the model has none; heads that the model has not are left out.

    Raises:
        ValueError: If entries are missing, unexpected or of another shape; counts them, lists the first few.
    """
    wanted = vit.state_dict()
    found = _fold_layer_scale(_timm_names(vit, found), wanted)
    found = {name: value for name, value in found.items() if name in wanted or not name.startswith(HEAD)}

    other = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if problems := other + missing + unexpected:
        shapes = [
            f"{name}: file {list(found[name].shape) if name in found else 'has none'}, "
            f"model {list(wanted[name].shape) if name in wanted else 'has none'}"
            for name in problems[:5]
        ]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"weights {source} do not fit {type(vit).__name__}: {len(other)} of the model's {len(wanted)} tensors have "
            f"another shape, {len(missing)} are missing, {len(unexpected)} are unexpected: {'; '.join(shapes)}{more}; "
            "is it a checkpoint of another architecture?"
        )
    check_numbers(found, source)
    return found


def check_numbers(tensors: "dict[str, Tensor]", source: Path | str) -> None:
    """Looks at every weight of a checkpoint.

    Raises:
        ValueError: If one is no floating-point number, infinite or not a number; counts them, names the first.
    """
    import torch

    bad = [f"{name} is {value.dtype}" for name, value in tensors.items() if not value.is_floating_point()]
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all():
            bad.append(f"{name} has values that are infinite or not a number")
    if bad:
        raise ValueError(f"weights {source} are damaged: {bad[0]}{f' ({len(bad)} such tensors)' * (len(bad) > 1)}")


def _timm_names(vit: "nn.Module", state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Applies the conversion of checkpoints that timm has for this family of models."""
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted = convert(dict(state), vit)
    except Exception:  # it assumes that shapes fit: say which do not, rather than where it stumbled
        return state
    # timm would also interpolate patches of another size, and positions of another width on the way to an error.
    for name, own in vit.state_dict().items():
        raw = state.get(name)
        if raw is not None and raw.ndim == own.ndim and raw.ndim > 1 and raw.shape[-1] != own.shape[-1]:
            converted[name] = raw
    return converted


def _fold_layer_scale(state: "dict[str, Tensor]", wanted: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Multiplies LayerScale that the model has not into the output of attention (ls1) or MLP (ls2)."""
    state = dict(state)
    for name in list(state):
        match = LAYER_SCALE.fullmatch(name)
        layer = match and match[1] + ("attn.proj" if match[2] == "1" else "mlp.fc2")
        if not match or name in wanted or f"{layer}.weight" not in state:
            continue
        gamma = state.pop(name)
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * gamma[:, None]
        if f"{layer}.bias" in state:
            state[f"{layer}.bias"] = state[f"{layer}.bias"] * gamma
    return state


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
