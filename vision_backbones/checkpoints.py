"""Checkpoints that others wrote, read without running their code."""

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar")
# What training scripts keep beside the tensors: their arguments, and a metric that may be a numpy number.
_make_scalar = np.float64(0).__reduce__()[0]
HARMLESS = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
    (_make_scalar, "numpy._core.multiarray.scalar"),
    (_make_scalar, "numpy.core.multiarray.scalar"),  # written by numpy 1
]
STATE_DICTS = ("state_dict_ema", "model_ema", "state_dict", "model")  # the first one present is taken
MOCO = ("base_encoder.", "momentum_encoder.", "predictor.")  # what MoCo v3 trains; probes read the first
WRAPPERS = re.compile(r"^((_orig_mod|module)\.)+")  # torch.compile, DistributedDataParallel


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint, as a ViT and the MaskEmbed decoder trained on top of it.

    Attributes:
        encoder: Entries of the ViT, in the file's own names.
        decoder: `decoder.*` and `encoder.head.*` of a MaskEmbed student, otherwise empty.
        ema: Whether they are an exponential moving average.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    ema: bool


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the tensors of a safetensors file or of a pickled checkpoint, of which no code is run.

    A moving average is preferred; prefixes of wrappers (`_orig_mod.`, `module.`) are taken off. If all names begin
    with `encoder.` or `decoder.`, as in the authors' released `.pth.tar` files, it is a MaskEmbed student. Of the two
    encoders of MoCo v3 the base encoder is taken.

    Raises:
        ValueError: If the file cannot be read, asks for code to be run, or holds no state dict.
    """
    name, state = _state_dict(path)
    state = {WRAPPERS.sub("", key): value for key, value in state.items() if isinstance(value, Tensor)}
    ema = name.endswith("_ema")
    if any(key.startswith(MOCO[0]) for key in state) and all(key.startswith(MOCO) for key in state):
        state = {key.removeprefix(MOCO[0]): value for key, value in state.items() if key.startswith(MOCO[0])}
    if not state or not all(key.startswith(("encoder.", "decoder.")) for key in state):
        return Checkpoint(state, {}, ema)
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    decoder = {key: value for key, value in state.items() if key.startswith(("decoder.", "encoder.head."))}
    return Checkpoint(encoder, decoder, ema)


def _state_dict(path: Path) -> tuple[str, dict]:
    """Returns the state dict in a file and the name under which it is stored there, if any."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return "", load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a valid weights file: expected a name that ends with {', '.join(SUFFIXES)}")
    content = unpickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict or a dict with 'state_dict'")
    for name in STATE_DICTS:
        if isinstance(content.get(name), dict) and content[name]:
            return name, content[name]
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds no state dict: found the keys {', '.join(map(str, list(content)[:8]))}, expected tensors by "
            f"parameter name, or one of {', '.join(STATE_DICTS)}"
        )
    return "", content


def unpickle(path: Path):
    """Returns what `torch.save` wrote, tensors and harmless values only."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            # Mapped, not read: the optimizer's tensors, two thirds of such a file, never enter memory.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} is refused: reading it would call '{asked[1]}', and a pickle that calls more than tensors and "
                "plain values can run any code. Nothing was run. Get the weights as safetensors, or have whoever made "
                "the file save the state dict alone: torch.save(model.state_dict(), path)"
            ) from error
        # torch recommends to run the code, and its documentation; what it found stands in between.
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation")[0]
        reason = " ".join(reason.split())[:300]
        raise ValueError(f"{path} is not a checkpoint of torch.save: {reason}") from error
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except Exception as error:  # a cut-off or foreign file fails in as many ways as there are formats
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} cannot be read as a checkpoint of torch.save: {reason}") from error
