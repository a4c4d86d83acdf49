"""Weights files of one's own: find them, load them strictly."""

import os
from pathlib import Path

from torch import nn

from vision_backbones.spec import BackboneSpec

ASSETS = Path(__file__).parent / "assets"
HEAD = ("head.", "fc_norm.", "attn_pool.")


def weights_folder() -> Path:
    """Gives the folder of weights files: `$VISION_BACKBONES_WEIGHTS`, by default `~/.cache/vision_backbones`."""
    return Path(os.environ.get("VISION_BACKBONES_WEIGHTS") or "~/.cache/vision_backbones").expanduser()


def find_weights(spec: BackboneSpec) -> Path | None:
    """Gives the safetensors file `spec.weights` stands for, or None where weights come from timm.

    A name is looked up inside this package, then in `weights_folder()`; a path (with a slash or .safetensors) is
    taken as it is.

    Raises:
        ValueError: If the file is not there; says where it was looked for and how to make it.
    """
    if spec.weights is None:
        return None
    if "/" in spec.weights or spec.weights.endswith(".safetensors"):
        candidates = [Path(spec.weights).expanduser()]
    else:
        candidates = [folder / f"{spec.weights}.safetensors" for folder in (ASSETS, weights_folder())]
    for path in candidates:
        if path.is_file():
            return path
    if spec.soft_cap:
        remedy = "make it with recipes/align.py (MaskEmbed) or copy it there"
    else:
        remedy = "write it there as safetensors with timm's parameter names"
    raise ValueError(
        f"backbone '{spec.id}': no weights file {' or '.join(map(str, candidates))}; {remedy}, set "
        "VISION_BACKBONES_WEIGHTS to the folder that holds it, or pass pretrained=False for random weights"
    )


def load_weights(vit: nn.Module, path: Path) -> None:
    """Loads a safetensors file with timm's names into a headless timm ViT, strictly.

    Position embeddings of another resolution are interpolated; entries of classification heads are ignored.

    Raises:
        ValueError: If the file is not safetensors, or parameters are missing, unexpected or of another shape; lists
            the first few.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.layers import resample_abs_pos_embed

    try:
        found = {name: value for name, value in load_file(path).items() if not name.startswith(HEAD)}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    wanted = vit.state_dict()

    old, new = found.get("pos_embed"), wanted.get("pos_embed")
    if old is not None and new is not None and old.shape != new.shape and old.shape[-1] == new.shape[-1]:
        prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
        found["pos_embed"] = resample_abs_pos_embed(old, list(vit.patch_embed.grid_size), num_prefix_tokens=prefix)

    problems = [f"missing {name} {list(wanted[name].shape)}" for name in wanted if name not in found]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in wanted]
    problems += [
        f"{name}: file {list(found[name].shape)}, model {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"weights {path} do not fit {type(vit).__name__}: {shown}")
    vit.load_state_dict(found)
