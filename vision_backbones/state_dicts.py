"""State dicts of others, made to fit a model, and looked at."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = ("head.", "fc_norm.", "attn_pool.")
LAYER_SCALE = re.compile(r"(blocks\.\d+\.)ls([12])\.gamma")


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

    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}  # a count
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
