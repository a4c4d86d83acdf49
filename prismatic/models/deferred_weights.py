"""A language model whose weights take no memory until it is sharded: every process then reads its own slices alone.

A placeholder is one zero, expanded to the shape of a parameter. Unlike a tensor on the meta device it has a device, so
that adapters beside it are drawn as ever, and buffers that no file holds (rotary frequencies) are real from the start.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from prismatic.models.llm import NO_CODE, VOCAB_MULTIPLE, get_llm_spec, source_of
from vision_backbones.weights import read_header

INDEX = "model.safetensors.index.json"
COLUMNS = 256  # of an embedding that are averaged at once


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one value, expanded."""
    return tensor.numel() > 1 and not any(tensor.stride())


def placeholder(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Zeros of a shape that take the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)


def weight_files(llm: str) -> dict[str, Path] | None:
    """The safetensors file of every weight of an LLM by name; None if it is not stored so.

    A model of the Hugging Face hub is downloaded to the cache.
    """
    source = source_of(get_llm_spec(llm))
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "tokenizer.model"])
    folder = Path(source)
    if "text_config" in json.loads((folder / "config.json").read_text()):
        return None  # a multimodal model, whose text part has other names
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text())["weight_map"]
        return {name: folder / Path(file).name for name, file in names.items()}
    file = folder / "model.safetensors"
    return dict.fromkeys(read_header(file)[0], file) if file.is_file() else None


def placeholder_llm(llm: str, vocabulary: int, dtype: torch.dtype):
    """The LLM with placeholders for weights, its embedding as large as `grow_vocabulary` makes it."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source_of(get_llm_spec(llm)), **NO_CODE)
    if vocabulary > config.vocab_size:
        config.vocab_size = -(-vocabulary // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _replace(model, lambda parameter: placeholder(parameter.shape, parameter.dtype))
    return model.eval()


def _replace(model: nn.Module, new: Callable[[nn.Parameter], torch.Tensor | None]) -> None:
    """Puts new parameters in the places of old ones, but where `new` returns None; tied weights stay tied."""
    made: dict[nn.Parameter, nn.Parameter | None] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                value = new(parameter)
                made[parameter] = None if value is None else nn.Parameter(value, parameter.requires_grad)
            if made[parameter] is not None:
                setattr(module, name, made[parameter])


def to_meta(model: nn.Module) -> None:
    """Makes placeholders tensors on the meta device, which is what FSDP shards without memory."""
    _replace(model, lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta") if is_placeholder(p) else None)


def place(model: nn.Module, device: torch.device) -> None:
    """Moves a model to a device, but for placeholders, which are moved when they are sharded."""
    model._apply(lambda tensor: tensor if is_placeholder(tensor) else tensor.to(device))


@torch.no_grad()
def fill(language_model: nn.Module, llm: str, device: torch.device) -> None:
    """Reads the weights of an LLM into its sharded parameters: of every file this process's rows alone.

    Raises:
        ValueError: the files hold other weights than the model has.
    """
    files = weight_files(llm) or {}
    for module in language_model.modules():
        module._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t, recurse=False)
    parameters = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in language_model.named_parameters()
        if ".lora_" not in name
    }
    missing = sorted(parameters.keys() - files.keys())
    if missing:
        raise ValueError(f"the weights of LLM {llm!r} lack {', '.join(missing[:5])} ({len(missing)})")
    by_file: dict[Path, list[str]] = {}
    for name in parameters:
        by_file.setdefault(files[name], []).append(name)
    for file, names in by_file.items():
        with safe_open(file, "pt") as tensors:
            for name in names:
                _fill(parameters[name], tensors.get_slice(name), name)


def _fill(parameter: nn.Parameter, stored, name: str) -> None:
    local, start = parameter.data, 0
    if isinstance(local, DTensor):
        mesh = local.device_mesh  # its last dimension shards rows as torch.chunk does
        start = mesh.get_local_rank(mesh.ndim - 1) * -(-len(local) // mesh.size(mesh.ndim - 1))
        local = local.to_local()
    rows, *rest = stored.get_shape()
    if rest != list(parameter.shape[1:]) or rows > parameter.shape[0]:
        raise ValueError(f"{name} has shape {stored.get_shape()} in its file, {list(parameter.shape)} in the model")
    known = max(0, min(len(local), rows - start))
    if known:
        local[:known].copy_(stored[start : start + known])
    if known < len(local):  # rows of new tokens: the mean of the old ones
        for first in range(0, parameter.shape[1], COLUMNS):
            part = slice(first, min(first + COLUMNS, parameter.shape[1]))
            local[known:, part] = stored[:, part].float().mean(0).to(local)
