"""Measures soft-capped attention against plain softmax attention: `python benchmarks/soft_cap.py`.

Attention alone, from packed `[B, N, 3, H, d]` to `[B, N, H * d]`, without the linear layers around it. The candidates
take turns in one process and each keeps its median, so that a busy machine slows all of them; ratios are to plain
softmax attention in eager mode. Memory is what autograd keeps for the backward pass, every storage counted once.
"""

import argparse
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from vision_backbones.soft_cap import soft_capped_attention
from vision_backbones.table import table

CAP = 30.0
SHAPES = {  # images, tokens, heads
    "ViT-S/16 224, B=8": (8, 197, 6),
    "ViT-S/16 224, B=24": (24, 197, 6),
    "ViT-B/16 224, B=8": (8, 197, 12),
    "ViT-L/14 336, B=2": (2, 577, 16),
    "miniature, B=64": (64, 37, 4),
}
WIDTH = 64


def plain(qkv, scale):
    """Softmax attention without a cap."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return (((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)


def eager_cap(qkv, scale):
    """The cap in eager mode."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return ((CAP * torch.tanh((q * scale) @ k.transpose(-2, -1) / CAP)).softmax(-1) @ v).transpose(1, 2)


def fused(qkv, scale):
    """Fused attention of torch, without a cap."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def ours(qkv, scale):
    """The tiled cap."""
    return soft_capped_attention(qkv, CAP, scale)


CANDIDATES = {
    "plain softmax, eager": plain,
    "soft cap, eager": eager_cap,
    "soft cap, ours": ours,
    "sdpa, no cap": fused,
}


def saved_megabytes(function, qkv, scale) -> float:
    """Megabytes that the backward pass of `function` waits for."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(qkv, scale)  # alive, so that no address is used twice
    del out
    return sum(storages.values()) / 2**20


def measure(shape: tuple[int, int, int], dtype: torch.dtype, repeats: int) -> list[tuple]:
    """Rows of the table for one shape."""
    images, tokens, heads = shape
    # As under autocast: the linear layer in front gives bfloat16.
    qkv = torch.randn(images, tokens, 3, heads, WIDTH).to(dtype).requires_grad_()
    forward, both = ({name: [] for name in CANDIDATES} for _ in range(2))
    for repeat in range(repeats + 2):
        for name, function in CANDIDATES.items():
            qkv.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                started = time.perf_counter()
                out = function(qkv, WIDTH**-0.5).flatten(2)
                between = time.perf_counter()
            out.backward(out.detach())
            ended = time.perf_counter()
            if repeat >= 2:
                forward[name].append(between - started)
                both[name].append(ended - started)
    rows = []
    for name, function in CANDIDATES.items():
        one, two = statistics.median(forward[name]), statistics.median(both[name])
        base_one, base_two = (statistics.median(times["plain softmax, eager"]) for times in (forward, both))
        megabytes = saved_megabytes(function, qkv, WIDTH**-0.5)
        rows.append((name, one * 1e3, one / base_one, two * 1e3, two / base_two, megabytes))
    return rows


def main() -> None:
    """Prints a table for every shape and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    header = ("", "forward (ms)", "ratio", "with backward (ms)", "ratio", "saved (MB)")
    for title, shape in SHAPES.items():
        for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16 autocast")):
            print(f"{title}, {precision}, {arguments.threads} threads")
            print(table(measure(shape, dtype, arguments.repeats), header) + "\n", flush=True)


if __name__ == "__main__":
    main()
