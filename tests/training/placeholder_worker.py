"""One process of a group that reads a sharded LLM, whole or its own slices; started by test_placeholders.py.

`placeholder_worker.py LLM STAGE whole|slices OUT` writes digests of all local tensors and the peak of anonymous memory.
"""

import hashlib
import json
import sys
import threading
import time
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.distributed.tensor import DTensor

from prismatic.models import stages
from prismatic.models.deferred_weights import fill, is_placeholder, place
from prismatic.models.load import start_stage
from prismatic.training import loop, sharding


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def main() -> None:
    llm, stage, how, out = sys.argv[1:]
    accelerator = loop.launch("bf16" if stage == "lora" else "fp32", [], ".", 2)
    parts = {"vision_backbone": "miniature", "llm": llm, "projector": "gelu-mlp"}
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous() - before)
            time.sleep(0.001)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    set_seed(7)
    model, _ = start_stage(parts, stage, lora, llm_later=how == "slices")
    if stage == "lora":
        stages.halve_frozen(model)
    place(model, accelerator.device)
    block = max(sum(p.numel() * p.element_size() for p in b.parameters()) for b in sharding.blocks(model))
    model = sharding.shard(model, "full", accelerator)
    if how == "slices":
        fill(sharding.base_model(model).llm, llm, accelerator.device)
    done.set()
    watching.join()
    named = [*model.named_parameters(), *model.named_buffers()]
    assert not any(is_placeholder(local(tensor)) and "lora_B" not in name for name, tensor in named if tensor.ndim > 1)
    digests = {n: hashlib.sha256(local(t).detach().float().numpy().tobytes()).hexdigest() for n, t in named}
    held = sum(local(t).nbytes for _, t in named)
    result = {"digests": digests, "peak": peak[0], "held": held, "block": block}
    Path(out, f"{stage}-{how}-{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.end_training()


if __name__ == "__main__":
    main()
