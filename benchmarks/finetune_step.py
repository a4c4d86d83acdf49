"""Measures one finetune step against the plain formulation: `python benchmarks/finetune_step.py`.

Plain is what a Hugging Face user writes: rows padded on the right, logits at every position, the model's own loss.
Ours runs `prismatic.training.losses.supervised_loss` on the same rows, packed: logits at supervised positions only,
no padding. Model: frozen ViT-tiny 224/16 (196 patches), gelu-mlp, Llama 256 wide x 4 layers with 32,064 words, float32.
Every variant runs in a process of its own, so that its peak memory is its own; time is the best of some steps.
"""

import json
import subprocess
import sys
import time

ROWS, VOCABULARY, PATCHES = 16, 32_064, 196


def make_model():
    """The model, backbone frozen."""
    import torch
    from transformers import LlamaConfig

    from prismatic import PrismaticConfig, PrismaticForConditionalGeneration
    from prismatic.models.stages import set_trainable
    from vision_backbones import BackboneSpec

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4
    )
    spec = BackboneSpec("vit-tiny", arch="vit_tiny_patch16_224", image_size=224)
    config = PrismaticConfig(text_config=text, vision_config=spec.to_dict(), image_token_id=VOCABULARY - 1)
    model = PrismaticForConditionalGeneration(config)
    set_trainable(model, "finetune")
    return model.train()


def make_examples(lengths, share, seed=0):
    """One example with an image for each text length; `share` of the text is supervised, in one span at the end."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    examples = []
    for length in lengths:
        text = torch.randint(3, 32_000, (length,), generator=generator)
        ids = torch.cat([text[:1], torch.full((PATCHES,), VOCABULARY - 1), text[1:]])
        labels = torch.full_like(ids, -100)
        spoken = max(1, round(length * share))
        labels[-spoken:] = ids[-spoken:]
        pixels = torch.randn(3, 224, 224, generator=generator)
        examples.append({"input_ids": ids, "labels": labels, "pixel_values": pixels})
    return examples


def step_lengths():
    """16 rows of 60 to 260 text tokens."""
    import numpy as np

    return np.random.default_rng(0).integers(60, 261, ROWS).tolist()


def llava_lengths(count):
    """Text lengths as uneven as LLaVA's: most rows short, some long conversations."""
    import numpy as np

    return np.random.default_rng(1).lognormal(4.6, 0.8, count).clip(20, 700).astype(int).tolist()


def run(variant: str, lengths: list[int], share: float, repeats: int) -> dict:
    """Time, memory and FLOPs of forward and backward on these rows, micro-batches of 16."""
    import resource

    from torch.utils.flop_counter import FlopCounterMode

    from prismatic.data.batching import collate_packed, collate_padded
    from prismatic.models.attention import SEGMENTED
    from prismatic.training import loop
    from prismatic.training.losses import supervised_loss, supervised_tokens

    accelerator = loop.launch("fp32", [], ".")
    model = make_model()
    examples = make_examples(lengths, share)
    groups = [examples[i : i + ROWS] for i in range(0, len(examples), ROWS)]
    if variant == "ours":
        model.set_attn_implementation({"text_config": SEGMENTED})
        batches = [collate_packed(g) for g in groups]
    else:
        batches = [collate_padded(g, 0) for g in groups]

    def step(batch):
        if variant == "plain":
            loss = model(**{k: v for k, v in batch.items() if hasattr(v, "shape")}, use_cache=False).loss
        else:
            loss = supervised_loss(model, batch) / supervised_tokens(batch)
        loss.backward()
        model.zero_grad()
        return loss.item()

    def resident():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    before = resident()
    losses = [step(batch) for batch in batches]
    peak = resident() - before
    best = min(_timed(lambda: [step(batch) for batch in batches]) for _ in range(repeats))
    with FlopCounterMode(display=False) as counter:
        step(batches[0])
    return {
        "loss": losses[0],
        "seconds": best,
        "gigabytes": peak,
        "gflop": counter.get_total_flops() / 1e9,
        "supervised": sum(map(supervised_tokens, batches)),
        "peak": loop.matmul_peak(accelerator) / 1e9,
    }


def _timed(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def in_own_process(variant: str, work: str) -> dict:
    """`run` in a fresh process."""
    out = subprocess.run([sys.executable, __file__, variant, work], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    """Prints both comparisons."""
    from vision_backbones.table import table

    plain, ours = in_own_process("plain", "step"), in_own_process("ours", "step")
    rows = [
        (
            name,
            r["seconds"],
            r["gigabytes"],
            r["gflop"],
            r["gflop"] / r["seconds"],
            r["gflop"] / r["seconds"] / r["peak"],
        )
        for name, r in (("plain", plain), ("ours", ours))
    ]
    header = ("step", "seconds", "peak GB", "GFLOP", "GFLOP/s", "of matmul peak")
    print(f"one step, {ROWS} rows of 60-260 text tokens, 40 % supervised\n{table(rows, header)}")
    print(
        f"{plain['seconds'] / ours['seconds']:.2f}x faster (target 2.5), {ours['gigabytes'] / plain['gigabytes']:.2f}x "
        f"peak memory (target 0.4), loss differs by {abs(plain['loss'] - ours['loss']):.1e}\n"
    )
    padded, packed = in_own_process("padded", "llava"), in_own_process("ours", "llava")
    rows = [(n, r["seconds"], r["supervised"] / r["seconds"]) for n, r in (("padded", padded), ("packed", packed))]
    print(
        f"LLaVA-like lengths, shuffled, supervised positions only\n{table(rows, ('rows', 'seconds', 'supervised/s'))}"
    )
    print(f"{padded['seconds'] / packed['seconds']:.2f}x supervised tokens/s (target 1.2)")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        lengths = step_lengths() if sys.argv[2] == "step" else llava_lengths(4 * ROWS)
        print(json.dumps(run(sys.argv[1], lengths, 0.4, repeats=3)))
