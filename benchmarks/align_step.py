"""One alignment step (teacher, student, optimizer) against the direct formulation; then the loader that must feed it.

ViT-S/16 at 224 pixels, 8 images, three masks each. Direct is how the method reads: masks enlarged to pixels, images
repeated three times, attention written out. Ours is what recipes/align.py runs: each image embedded once and masked
afterwards, soft-capped attention that keeps no logits (in bf16: its weights), the teacher's linear layers packed, their
GELU fused. Checkpointed computes the student's blocks again (--gradient_checkpointing). All start from the same weights
and see the same images and masks. Every variant runs in a process of its own, so that its peak memory is its own; time
is the median of some steps. FLOPs are those of the products that the method needs, counted once for all variants: what
is computed a second time in the backward pass does not count as achieved. Products alone is the limit: the matrix
products and convolutions of the direct step, of the same shapes, one after the other into memory that is there already,
with nothing in between.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prismatic.models import stages

IMAGES, MASKS = 8, 3
PRECISIONS = ("fp32", "bf16")
OURS = ("ours", "checkpointed")
STEPS = 6


def direct_attention():
    """Soft-capped and plain attention, written out."""
    import torch
    from timm.layers import Attention

    class Direct(Attention):
        cap = None

        def forward(self, x, attn_mask=None, is_causal=False):
            batch, tokens, width = x.shape
            q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            logits = q * self.scale @ k.transpose(-2, -1)
            if self.cap:
                logits = self.cap * torch.tanh(logits / self.cap)
            return self.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))

    return Direct


def make(variant: str):
    """Teacher and student with the same weights in every variant."""
    import torch

    from vision_backbones import BackboneSpec
    from vision_backbones.maskembed.student import MaskEmbedStudent
    from vision_backbones.maskembed.teacher import Teacher
    from vision_backbones.vit import build_vit

    torch.manual_seed(0)
    spec = BackboneSpec("s", arch="vit_small_patch16_224", image_size=224)
    teacher = Teacher(build_vit(spec))
    student = MaskEmbedStudent(build_vit(BackboneSpec.from_dict(spec.to_dict() | {"soft_cap": 30.0})), 384)
    for head in (student.encoder.head, *(block.ls1 for block in student.decoder.blocks)):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.05)  # at zero nothing would reach the encoder
    if variant == "direct":
        direct = direct_attention()
        for module in (teacher, student):
            for block in module.modules():
                if hasattr(block, "attn"):
                    cap = getattr(block.attn, "cap", None)
                    block.attn.__class__ = direct
                    block.attn.cap = cap
    return teacher, student


def run(variant: str, precision: str, micro_batch: int) -> dict:
    """Seconds, peak memory and FLOPs of a step."""
    import resource

    import numpy as np
    import torch

    from prismatic.training import loop
    from prismatic.training import vision as images  # noqa: F401  images: what a recipe imports
    from vision_backbones.maskembed.loss import reconstruction_loss
    from vision_backbones.maskembed.mask_samplers import sample_masks
    from vision_backbones.maskembed.masked_forward import mask_pixels
    from vision_backbones.maskembed.packed import pack_linear

    def resident():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    accelerator, imported = loop.launch(precision, [], "."), resident()
    teacher, student = make("direct" if variant == "products" else variant)
    if variant in OURS:
        if precision == "bf16":
            stages.halve_frozen(teacher)
        pack_linear(teacher)
    if variant == "checkpointed":
        student.set_grad_checkpointing()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(IMAGES, 3, 224, 224, generator=generator)
    masks = sample_masks(np.random.default_rng(0), IMAGES, 196)

    def loss(model, pixels, masks):
        if variant not in OURS:
            embed = teacher.vit.patch_embed
            target = teacher(mask_pixels(pixels, masks, embed.grid_size, embed.patch_size))
        else:
            target = teacher(pixels, masks)
        return reconstruction_loss(model(pixels, masks), target, masks)

    def step():
        total = 0.0
        for start in range(0, IMAGES, micro_batch):
            some, theirs = pixels[start : start + micro_batch], masks[start * MASKS : (start + micro_batch) * MASKS]
            with accelerator.autocast():
                mean = loss(student, some, theirs)
            (mean * len(some) / IMAGES).backward()
            total += mean.item() * len(some) / IMAGES
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    losses = [step(), step()]
    if variant == "products":
        step = products_of(step)
        step()
    seconds = []
    peaks = [loop.matmul_peak(accelerator)]
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    memory = resident()
    peaks.append(loop.matmul_peak(accelerator))
    return {
        "losses": losses, "seconds": statistics.median(seconds), "peak": max(peaks), "gigabytes": memory,
        "above_imports": memory - imported,
    }  # fmt: skip


def products_of(step):
    """A function that computes the matrix products and convolutions of a step again, alone."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    recorded, buffers = [], {}

    def like(value):
        if not isinstance(value, torch.Tensor):
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in buffers:
            buffers[key] = torch.randn_like(value)
        return buffers[key]

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            if function in (aten.addmm.default, aten.mm.default, aten.bmm.default):
                factors = [like(a.detach()) for a in arguments[-2:]]
                product = torch.mm if factors[0].ndim == 2 else torch.bmm
                recorded.append((product, factors, {"out": like(out)}))
            elif function in (aten.convolution.default, aten.convolution_backward.default):
                recorded.append((function, [like(a) for a in arguments], {}))
            return out

    with Record():
        step()

    def again():
        for function, arguments, options in recorded:
            function(*arguments, **options)

    return again


def flops() -> float:
    """Of one step, without anything computed twice."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vision_backbones.maskembed.loss import reconstruction_loss
    from vision_backbones.maskembed.mask_samplers import sample_masks

    teacher, student = make("direct")  # written out, so that every product is seen
    pixels, masks = torch.randn(1, 3, 224, 224), sample_masks(np.random.default_rng(0), 1, 196)
    with FlopCounterMode(display=False) as counter:
        reconstruction_loss(student(pixels, masks), teacher(pixels, masks), masks).backward()
    return counter.get_total_flops() * IMAGES


def in_own_process(*arguments):
    """What a fresh process prints: `run`, or `flops`, whose memory would count as everyone's if it were this one's."""
    command = [sys.executable, __file__, *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    """Prints the comparison and what the loader delivers."""
    from vision_backbones.table import table

    work = in_own_process("flops")
    print(f"ViT-S/16, {IMAGES} images x {MASKS} masks, {work / 1e9:.0f} GFLOP a step")
    fastest, names = 0.0, {"products": "products alone"}
    for precision in PRECISIONS:
        variants = [("direct", 8), ("ours", 8), ("ours", 4), ("ours", 2), ("checkpointed", 8), ("checkpointed", 4)]
        variants += [("products", 8)]
        results = [in_own_process(variant, precision, size) for variant, size in variants]
        rows = [
            (
                names.get(variant, variant) if size == IMAGES else f"{variant}, micro-batches of {size}",
                r["seconds"],
                work / r["seconds"] / 1e9,
                r["peak"] / 1e9,
                work / r["seconds"] / r["peak"],
                *(part for key in ("gigabytes", "above_imports") for part in (r[key], r[key] / results[0][key])),
                abs(r["losses"][1] - results[0]["losses"][1]),
            )
            for (variant, size), r in zip(variants, results, strict=True)
        ]
        header = ("step", "seconds", "GFLOP/s", "peak", "of peak", "peak GB", "ratio", "above imports", "ratio", "loss")
        print(f"\n{precision}\n{table(rows, header)}")
        fastest = max(fastest, *(IMAGES / r["seconds"] for r in results[:-1]))
    loader(fastest)


def loader(needed: float) -> None:
    """Prints what one loader process delivers, next to what the fastest step eats."""
    from image_loader import images_per_second, write_images

    from prismatic.data.images import training_transform

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for place in write_images(Path(folder)):
            rate = images_per_second(place, training_transform("in1k-vit-s"))
            kind = "tar shard" if place.endswith(".tar") else "folder"
            print(f"\none loader core, {kind}: {rate:.0f} images/s, {rate / needed:.1f}x what the fastest step eats")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "flops":
        print(json.dumps(flops()))
    else:
        print(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
