"""A frozen language model in 4 or 8 bits, on which adapters and projectors are trained (QLoRA).

The linear layers of its blocks are quantised, by bitsandbytes where that computes here, else by torchao; embedding,
head and norms stay as they are. What is saved never holds a quantised weight.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from prismatic.models.lora import linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BITS = {"4bit": 4, "8bit": 8}
TOLERANCE = {"4bit": 0.2, "8bit": 0.03}  # of a product of random matrices, as a share of its standard deviation


@torch.no_grad()
def quantize(llm: "PreTrainedModel", kind: str, accelerator) -> None:
    """Quantises the linear layers of an LLM's blocks in place, one by one, and moves them to the device; says so.

    Args:
        llm: frozen.
        kind: "4bit" (normal floats in blocks of 64, their scales in 8 bits) or "8bit".
        accelerator: gives device and precision.

    Raises:
        ValueError: no library is installed that computes such layers on this device.
    """
    device = accelerator.device
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    library, make = _working(kind, device, dtype)
    modules = dict(llm.named_modules())
    layers = [name for name in linear_layers(llm)[0] if isinstance(modules[name], nn.Linear)]
    weights = sum(modules[name].weight.numel() for name in layers)
    share = weights / sum(p.numel() for p in llm.parameters())
    for name in layers:
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, make(modules.pop(name), kind, device, dtype))
    accelerator.print(f"LLM in {BITS[kind]} bits: {share:.0%} of its weights, {len(layers)} layers, by {library}")


def parameter_count(parameter: nn.Parameter) -> int:
    """Number of weights that a parameter stands for: two of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def quantized_bytes(weights: int, rows: int, kind: str) -> int:
    """Bytes of a matrix of so many weights in so many rows, its scales included."""
    if kind == "8bit":
        return weights + 4 * rows
    return weights // 2 + weights // 64 + 4 * (weights // (64 * 256) + 1)


Maker = Callable[[nn.Linear, str, torch.device, torch.dtype], nn.Module]


def _bitsandbytes(layer: nn.Linear, kind: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    size, bias = (layer.in_features, layer.out_features), layer.bias is not None
    if kind == "4bit":
        new = bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=dtype, quant_type="nf4", device="meta")
        options = {"quant_type": "nf4", "compress_statistics": True, "module": new}
        new.weight = bnb.nn.Params4bit(layer.weight.data.to(dtype), requires_grad=False, **options)
        new.support_avx512bf16_for_cpu = False  # its form for those loses gradients for good after one evaluation
    else:
        new = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta")
        new.weight = bnb.nn.Int8Params(layer.weight.data.to(dtype), requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(device).requires_grad_(False)


def _torchao(layer: nn.Linear, kind: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    packed = {"group_size": 32, "int4_packing_format": "tile_packed_to_4d"}  # on GPUs; no other format is half a byte
    config = Int4WeightOnlyConfig(**packed) if kind == "4bit" else Int8WeightOnlyConfig()
    new = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    new.weight = nn.Parameter(layer.weight.data.to(device, dtype), requires_grad=False)
    new.bias = layer.bias
    quantize_(new, config)
    return new.to(device).requires_grad_(False)


def _working(kind: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Maker]:
    """The first library whose layers compute here, forward and backward, about what they should."""
    reasons = []
    for library, make in (("bitsandbytes", _bitsandbytes), ("torchao", _torchao)):
        try:
            if problem := _problem(make, kind, device, dtype):
                reasons.append(f"{library} {problem}")
            else:
                return library, make
        except ImportError:
            reasons.append(f"{library} is not installed")
        except Exception as error:  # of libraries that lack kernels: nearly anything
            reasons.append(f"{library} fails ({type(error).__name__}: {' '.join(str(error).split())[:150]})")
    raise ValueError(f"--quantize {kind} does not work on {device}: {'; '.join(reasons)}. pip install bitsandbytes")


def _problem(make: Maker, kind: str, device: torch.device, dtype: torch.dtype) -> str | None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(128, 192, bias=False)
    layer.weight.data = torch.randn(192, 128, generator=generator)
    x = torch.randn(2, 16, 128, generator=generator).to(device, dtype)
    full = layer.weight.data.to(device, dtype)
    given, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.enable_grad():
        small = make(layer, kind, device, dtype).eval()
        with torch.no_grad():
            small(x)  # in which a layer may take a form that has no gradients
        quantized = small.train()(given)
        expected = wanted @ full.T
        quantized.square().sum().backward(), expected.square().sum().backward()
    for name, one, two in (("output", quantized, expected), ("gradient", given.grad, wanted.grad)):
        error = (one - two).float().std() / two.float().std()
        if not error <= TOLERANCE[kind]:
            return f"computes something else ({name} {error:.0%} off)"
    return None
