"""Weights files of one's own: find, read, write them, load them strictly.

A locality-aligned backbone is `NAME.safetensors`, timm's names of a headless ViT with the backbone's spec in the
metadata, and beside it `NAME.decoder.safetensors`, what MaskEmbed trained on top of it.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vision_backbones.released import RELEASED, check_unchanged, obtain
from vision_backbones.spec import BackboneSpec
from vision_backbones.state_dicts import fit_state

if TYPE_CHECKING:
    from torch import nn

ASSETS = Path(__file__).parent / "assets"
MOST_HEADER = 100_000_000  # bytes, as the safetensors library has it


def weights_folder() -> Path:
    """Returns the folder of weights files: `$VISION_BACKBONES_WEIGHTS`, by default `~/.cache/vision_backbones`."""
    return Path(os.environ.get("VISION_BACKBONES_WEIGHTS") or "~/.cache/vision_backbones").expanduser()


def find_weights(spec: BackboneSpec) -> Path | None:
    """Returns the file `spec.weights` stands for, or None where weights come from timm.

    A name is looked up, as `NAME.safetensors`, inside this package, then in `weights_folder()`; a path (with a slash
    or the suffix of a weights file) is taken as it is. A name that others released is downloaded when it is first
    asked for (see `released`).

    Raises:
        ValueError: If the file is not there; says where it was looked for and how to make it. If it was fetched and has
            changed since.
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
            if len(candidates) > 1:
                check_unchanged(path)
            return path
    missing = f"backbone '{spec.id}': no weights file {' or '.join(map(str, candidates))}"
    if spec.weights in RELEASED:
        return obtain(spec, candidates[-1], missing)
    if spec.soft_cap:
        remedy = (
            "make it with recipes/align.py (MaskEmbed), convert a released checkpoint to it "
            f"(`python -m vision_backbones convert IN.pth.tar {candidates[-1]} --backbone {spec.id}`) or copy it there"
        )
    else:
        remedy = "write it there as safetensors with timm's parameter names"
    raise ValueError(
        f"{missing}; {remedy}, set VISION_BACKBONES_WEIGHTS to the folder that holds it, or pass pretrained=False for "
        "random weights"
    )


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
