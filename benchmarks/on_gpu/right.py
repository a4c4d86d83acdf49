"""What must hold on the device: each check returns what it found, or raises.

References are computed on the CPU in float32. Limits are shares of the largest expected value.
"""

import contextlib
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from on_gpu.models import BF16, FAMILIES, FP32, LORA, Machine, Skipped, accelerator_of, close, rows, small_vlm, twin
from on_gpu.runs import resume, sharded, two_devices
from PIL import Image

import prismatic
from eval.engine import Question, SharedPrefixEngine
from eval.generate_engine import PlainEngine
from eval.task import Choose, Generate
from prismatic.data import batching
from prismatic.data.batching import collate_packed, collate_padded
from prismatic.miniature.scenes import scene
from prismatic.models import stages
from prismatic.models.attention import SEGMENTED
from prismatic.models.stages import as_stage
from prismatic.training import loop, losses
from vision_backbones import create_backbone
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.soft_cap import flex_soft_capped_attention, soft_capped_attention
from vision_backbones.vit import build_vit


def gradients(model, batches, precision: str):
    """Mean loss and gradients of a finetune step, on the model's device."""
    device = next(model.parameters()).device
    batches = [batching.to_device(batch, device) for batch in batches]
    total = sum(map(losses.supervised_tokens, batches))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = sum(losses.supervised_loss(model, batch) for batch in batches) / total
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


def towers(machine: Machine) -> str:
    """Vision towers of every family: fp32 and bf16 against the CPU."""
    worst = {"fp32": 0.0, "bf16": 0.0}
    for name, spec in FAMILIES.items():
        torch.manual_seed(0)
        backbone = create_backbone(spec, pretrained=False).eval()
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = backbone(pixels)
            for precision, dtype, limit in (("fp32", torch.float32, FP32), ("bf16", torch.bfloat16, BF16)):
                found = twin(backbone, machine.device, dtype)(pixels.to(machine.device, dtype))
                try:
                    worst[precision] = max(worst[precision], close(found, expected, limit))
                except AssertionError as error:
                    raise AssertionError(f"{name} in {precision}: {error}") from None
    return f"{len(FAMILIES)} families: fp32 {worst['fp32']:.1e}, bf16 {worst['bf16']:.1e}"


def soft_cap(machine: Machine) -> str:
    """Soft-capped attention, forward and backward: ours and Flex against the formula in float64."""
    torch.manual_seed(0)
    qkv, cap, scale = torch.randn(2, 150, 3, 4, 32) * 3, 30.0, 32**-0.5
    weight = torch.randn(2, 150, 4, 32)

    def run(function, qkv):
        qkv = qkv.detach().requires_grad_()
        out = function(qkv)
        (out * weight.to(out)).sum().backward()
        return {"out": out.detach(), "gradient": qkv.grad}

    def formula(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return ((cap * torch.tanh((q * scale) @ k.transpose(-2, -1) / cap)).softmax(-1) @ v).transpose(1, 2)

    expected = run(formula, qkv.double())
    on_device = qkv.to(machine.device)
    said = [f"ours {close(run(lambda x: soft_capped_attention(x, cap, scale), on_device), expected, FP32):.1e}"]
    if machine.is_cuda:
        flex = run(lambda x: flex_soft_capped_attention(x, cap, scale), on_device)
        said.append(f"Flex {close(flex, expected, 2e-3):.1e}")  # its products are rounded to TensorFloat-32
    return ", ".join(said)


def packed(machine: Machine) -> str:
    """A finetune step: on the device = on the CPU, packed = padded."""
    model = small_vlm()
    stages.set_trainable(model, "finetune")
    items = rows(8, model.vision_backbone.num_tokens, 32)
    padded, segments = [collate_padded(items, 0)], [collate_packed(items)]
    loss, expected = gradients(model, padded, "fp32")
    said = []
    for precision, limit in (("fp32", FP32), ("bf16", BF16)):
        there = twin(model, machine.device)
        if precision == "bf16":
            stages.halve_frozen(there)
        one = gradients(there, padded, precision)
        there.set_attn_implementation({"text_config": SEGMENTED})
        other = gradients(there, segments, precision)
        for name, (found, grads) in (("padded", one), ("packed", other)):
            assert abs(found / loss - 1) <= limit, f"{name} in {precision}: loss {found}, on the CPU {loss}"
            said.append(f"{name} {precision} {close(grads, expected, limit):.1e}")
    return ", ".join(said)


def lora(machine: Machine) -> str:
    """A LoRA step against the CPU."""
    model = as_stage(small_vlm(), "lora", LORA)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # at zero nothing would reach A
    items = rows(8, model.get_base_model().vision_backbone.num_tokens, 32)
    loss, expected = gradients(model, [collate_padded(items, 0)], "fp32")
    found, grads = gradients(twin(model, machine.device), [collate_padded(items, 0)], "fp32")
    assert abs(found / loss - 1) <= FP32, f"loss {found}, on the CPU {loss}"
    return f"{len(grads)} tensors, {close(grads, expected, FP32):.1e}"


def maskembed(machine: Machine) -> str:
    """A MaskEmbed step against the CPU."""
    torch.manual_seed(0)
    teacher = Teacher(build_vit(FAMILIES["in1k"]))
    student = MaskEmbedStudent(build_vit(FAMILIES["aligned"]), 64)
    for head in (student.encoder.head, *(block.ls1 for block in student.decoder.blocks)):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.05)  # at zero nothing would reach the encoder
    pixels, masks = torch.randn(4, 3, 32, 32), sample_masks(np.random.default_rng(0), 4, 16)

    def run(device, precision):
        there, learner = twin(teacher, device), twin(student, device)
        images, hidden = pixels.to(device), masks.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = reconstruction_loss(learner(images, hidden), there(images, hidden), hidden)
        loss.backward()
        return {"loss": loss.detach()} | {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}

    expected = run(torch.device("cpu"), "fp32")
    fp32 = close(run(machine.device, "fp32"), expected, FP32)
    loss = close(run(machine.device, "bf16")["loss"], expected["loss"], BF16)
    return f"fp32 {fp32:.1e}, loss in bf16 {loss:.1e}"


def questions():
    """Pictures, and questions of several kinds about them."""
    pictures = [Image.fromarray(scene(77, index).image) for index in range(4)]
    texts = ["What color is the cross?", "How many objects are there?", "Where is the blue square?"]
    kinds = [Generate(12), Choose(("A", "B")), Choose(("a red circle", "no"))]
    return pictures, [Question(i, text, kind) for i in range(4) for text, kind in zip(texts, kinds, strict=True)]


def answers(engine, pictures, asked) -> list:
    """Texts, and probabilities of options."""
    return engine.answer([engine.prepare(picture) for picture in pictures], asked)


def same_answers(one, other, limit: float) -> float:
    """Largest distance of two probabilities; raises where texts differ."""
    assert [a.text for a in one] == [a.text for a in other], "answers differ"
    assert not any(a.error for a in one), next(a.error for a in one if a.error)
    distances = [abs(np.subtract(a.probabilities, b.probabilities)).max() for a, b in zip(one, other, strict=True)
                 if a.probabilities]  # fmt: skip
    assert max(distances) <= limit, f"probabilities differ by {max(distances):.1e}, at most {limit:.0e} is expected"
    return max(distances)


def evaluation(machine: Machine) -> str:
    """Answers of `prismatic.load` on the device = on the CPU, in batches = one at a time, shared = plain."""
    (model, processor), (pictures, asked) = prismatic.load("miniature"), questions()
    expected = answers(PlainEngine(model, processor, 1), pictures, asked)
    model = twin(model, machine.device)
    said = []
    for name, engine in (
        ("one at a time", PlainEngine(model, processor, 1)),
        ("batches", PlainEngine(model, processor, 5)),
        ("shared prefixes", SharedPrefixEngine(model, processor, 7)),
    ):
        said.append(f"{name} {same_answers(answers(engine, pictures, asked), expected, 1e-4):.1e}")
    return f"{len(asked)} questions: " + ", ".join(said)


def out_of_memory(machine: Machine) -> str:
    """An evaluation that lacks memory continues in smaller batches, with the same answers."""
    if not machine.is_cuda:
        raise Skipped("needs a GPU, whose memory can be limited")
    from eval.runner import answer_within_memory
    from eval.task import Example
    from eval.tasks import get_task

    (model, processor), task = prismatic.load("miniature"), get_task("refcoco")
    engine = SharedPrefixEngine(model.to(machine.device), processor, 512)
    pictures = [engine.prepare(Image.fromarray(scene(77, index).image)) for index in range(512)]
    asked = [(picture, Example(str(n), "x", "the red circle", [0, 0, 1, 1])) for n, picture in enumerate(pictures)]
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    expected = answer_within_memory(task, engine, asked)
    assert engine.batch_size == 512, "memory was short before it was limited"
    most, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((held + most) / 2 / total)
    try:
        found = answer_within_memory(task, engine, asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.batch_size < 512, "memory was not short"
    assert [a.text for a in found] == [a.text for a in expected], "answers differ"
    return f"from 512 to {engine.batch_size} questions at once"


def host_waits(machine: Machine) -> str:
    """Where the host waits for the device in a finetune step: only for what the loop logs."""
    if not machine.is_cuda:
        raise Skipped("needs a GPU")
    accelerator = accelerator_of("bf16", machine.folder)
    model = small_vlm()
    stages.set_trainable(model, "finetune")
    model.set_attn_implementation({"text_config": SEGMENTED})
    model.to(machine.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    batches = [collate_packed(rows(8, model.vision_backbone.num_tokens, 32)) for _ in range(12)]
    waits: Counter = Counter()

    def watch(step: int, stop: bool) -> None:
        if step == 2:  # kernels are compiled and FLOPs counted
            torch.cuda.set_sync_debug_mode("warn")

    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        stack.callback(torch.cuda.set_sync_debug_mode, "default")
        loop.fit(
            accelerator, model, optimizer, losses.TEXT, epochs=[(1, batches)], total_steps=6, accumulation=2,
            rate_at=lambda step: 1e-4, max_grad_norm=1.0, log=lambda row: None,
            end_of_epoch=lambda epoch, step: None, after_step=watch,
        )  # fmt: skip
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            waits[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    said = ", ".join(f"{place} {count / 4:g}" for place, count in waits.most_common())
    # masking_utils.py: transformers looks whether position ids are those of packed rows, once a micro-batch.
    expected = ("loop.py", "sharding.py", "_tensor.py", "operations.py", "masking_utils.py")
    others = [place for place in waits if not place.startswith(expected)]
    assert not others, f"the host waits in {', '.join(others)} (a step: {said})"
    return f"{sum(waits.values()) / 4:g} a step of two micro-batches ({said})"


CHECKS = [
    towers, soft_cap, packed, lora, maskembed, evaluation, resume, sharded, two_devices, out_of_memory, host_waits,
]  # fmt: skip
