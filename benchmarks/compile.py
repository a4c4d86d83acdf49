"""torch.compile on this machine: a forward pass, generation, a finetune step and an alignment step, against eager.

Models are the bundled miniature ones; results are compared. Compiling takes a minute or two altogether.
"""

import time

import numpy as np
import torch
from PIL import Image

import prismatic
from prismatic.miniature.scenes import scene
from prismatic.training import loop
from vision_backbones import get_spec
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.table import table
from vision_backbones.vit import build_vit


def seconds(step, repeats: int) -> float:
    """Median time of a step after a warm-up."""
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def rows_of(name: str, eager, compiled, repeats: int) -> list[str]:
    """A row of the table; results of both must be close."""
    started = time.perf_counter()
    found = compiled()
    first = time.perf_counter() - started
    torch.testing.assert_close(found, eager(), rtol=1e-3, atol=1e-3)
    one, two = seconds(eager, repeats), seconds(compiled, repeats)
    return [name, f"{1000 * one:.1f}", f"{1000 * two:.1f}", f"{one / two:.2f}", f"{first:.0f}"]


def main() -> None:
    """Prints the table."""
    loop.launch("fp32", [], ".")
    model, processor = prismatic.load("miniature")
    pictures = [Image.fromarray(scene(3, number).image) for number in range(8)]
    inputs = dict(processor(images=pictures, text=["<image>What color is the cross?"] * 8))
    labels = inputs["input_ids"].where(inputs["input_ids"] != model.config.image_token_id, -100)
    compiled = torch.compile(model, fullgraph=True)
    rows = []

    def forward(model):
        with torch.no_grad():
            return model(**inputs).logits

    def finetune(model):
        model.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        return loss.detach()

    def generate(model):
        asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
        return model.generate(**inputs, **asked)

    rows.append(rows_of("forward, 8 images", lambda: forward(model), lambda: forward(compiled), 20))
    rows.append(rows_of("finetune step, 8 images", lambda: finetune(model), lambda: finetune(compiled), 10))
    faster, _ = prismatic.load("miniature")
    faster.forward = torch.compile(faster.forward)
    rows.append(rows_of("generate 8 tokens, 8 images", lambda: generate(model), lambda: generate(faster), 5))

    torch.manual_seed(0)
    spec = get_spec("miniature-aligned")
    student = MaskEmbedStudent(build_vit(spec), 96)
    pixels = torch.randn(8, 3, spec.image_size, spec.image_size)
    masks = sample_masks(np.random.default_rng(0), 8, student.encoder.patch_embed.num_patches)
    tokens = student.encoder.num_prefix_tokens + masks.shape[1]
    targets = torch.randn(len(masks), tokens, 96)
    fast = torch.compile(student, fullgraph=True)

    def align(student):
        student.zero_grad()
        loss = reconstruction_loss(student(pixels, masks), targets, masks)
        loss.backward()
        return loss.detach()

    rows.append(rows_of("alignment step, 8 images", lambda: align(student), lambda: align(fast), 10))
    print(table(rows, ["step", "eager ms", "compiled ms", "times", "compiling s"]))


if __name__ == "__main__":
    main()
