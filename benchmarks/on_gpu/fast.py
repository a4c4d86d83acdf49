"""How fast it is: each measurement returns rows of the table. Times are medians of steps after a warm-up."""

import dataclasses
import functools
import gc
import itertools
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from on_gpu.models import LORA, SHAPES, TOYS, Machine, accelerator_of, config_of, large_vlm, rows
from PIL import Image
from torch.utils.data import DataLoader

from eval.engine import Question, SharedPrefixEngine
from eval.generate_engine import PlainEngine
from eval.task import Choose, Generate
from prismatic.data import batching
from prismatic.data.batching import collate_packed
from prismatic.flops import flop_counter
from prismatic.models import stages
from prismatic.models.attention import SEGMENTED
from prismatic.models.build import build_processor
from prismatic.models.llm import load_tokenizer
from prismatic.models.vocabulary import grow_vocabulary
from prismatic.planning.memory import plan_finetune
from prismatic.text.speech import stop_where_answers_end
from prismatic.training import loop, losses
from vision_backbones import get_spec
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.safe_images import open_image, to_rgb
from vision_backbones.soft_cap import SoftCapAttention
from vision_backbones.transforms import image_transform
from vision_backbones.vit import build_vit

Row = tuple[str, float, str]  # what, how much, of what


def median_seconds(machine: Machine, step, repeats: int) -> float:
    """Median time of a step, by the device's own clock where it has one."""
    for _ in range(2):
        step()
    times = []
    for _ in range(repeats):
        if machine.is_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
    return statistics.median(times)


@functools.cache
def peak_of(precision: str, folder: Path) -> float:
    """FLOP/s of a large matrix product."""
    return loop.matmul_peak(accelerator_of(precision, folder))


def matmul(machine: Machine) -> list[Row]:
    """Peak of a matrix product in bfloat16, or in float32 on a CPU."""
    peak = peak_of(machine.precision, machine.folder)
    return [(f"matrix product, {machine.precision}", peak / 1e12, "TFLOP/s")]


def alignment(machine: Machine) -> list[Row]:
    """Steps of MaskEmbed: ViT-B/16 and ViT-L/14-336, three masks an image; with FlexAttention as well."""
    found, peak = [], peak_of(machine.precision, machine.folder)
    sizes = (("miniature", 4),) if machine.toy else (("in1k-vit-b", 64), ("clip-vit-l-336px", 16))
    for (id, images), flex in itertools.product(sizes, (False, True) if machine.is_cuda else (False,)):
        spec = get_spec(id)
        accelerator = accelerator_of(machine.precision, machine.folder)
        torch.cuda.reset_peak_memory_stats() if machine.is_cuda else None
        torch.manual_seed(0)
        teacher = Teacher(build_vit(dataclasses.replace(spec, soft_cap=None)))
        student = MaskEmbedStudent(build_vit(dataclasses.replace(spec, soft_cap=30.0)), teacher.vit.embed_dim)
        if machine.precision == "bf16":
            stages.halve_frozen(teacher)
        teacher.to(machine.device), student.to(machine.device)
        for module in student.modules():
            if isinstance(module, SoftCapAttention):
                module.flex = flex
        name = f"align {id}, {'Flex, ' if flex else ''}{images} images"
        patches = (spec.image_size // teacher.vit.patch_embed.patch_size[0]) ** 2
        pixels = torch.randn(images, 3, spec.image_size, spec.image_size, device=machine.device)
        masks = sample_masks(np.random.default_rng(0), images, patches).to(machine.device)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

        def loss_sum(model, batch, teacher=teacher):
            return reconstruction_loss(
                model(batch["pixels"], batch["masks"]), teacher(batch["pixels"], batch["masks"]), batch["masks"]
            )

        batch = {"pixels": pixels, "masks": masks}

        def step(student=student, optimizer=optimizer, batch=batch, accelerator=accelerator, loss_sum=loss_sum):
            loop.accumulate(student, [batch], [1.0], loss_sum, accelerator)
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        flops = 0 if flex else flops_of(lambda step=step: step())
        seconds = median_seconds(machine, step, 3 if machine.toy else 10)
        found += [(name, images / seconds, "images/s"), (f"{name}, peak memory", loop.memory_gb(machine.device), "GB")]
        if not flex:  # in which no operations are counted
            found.append((f"{name}, MFU", flops / seconds / peak, "of the product"))
    return found


def flops_of(step) -> float:
    """FLOPs of a step as torch counts them."""
    with flop_counter() as counter:
        step()
    return counter.get_total_flops()


def finetuning(machine: Machine) -> list[Row]:
    """Finetune steps: a 1B in full and a 7B with LoRA behind CLIP-L/14-336, against the plan."""
    found, peak = [], peak_of(machine.precision, machine.folder)
    for shape in TOYS if machine.toy else SHAPES:
        accelerator = accelerator_of(machine.precision, machine.folder)
        model = large_vlm(shape, machine)
        vlm = model.get_base_model() if hasattr(model, "peft_config") else model
        vlm.set_attn_implementation({"text_config": SEGMENTED})
        if machine.is_cuda:
            gc.collect(), torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        image_token, vocabulary = vlm.config.image_token_id, shape.llm["vocab_size"] - 1
        batches = [
            batching.to_device(
                losses.with_positions(model, collate_packed(
                    rows(shape.rows, vlm.vision_backbone.num_tokens, vlm.config.image_size,
                         (shape.text, shape.text + 1), vocabulary, image_token))), machine.device
            )
        ]  # fmt: skip
        terms = losses.supervised_tokens(batches[0])

        def step(model=model, optimizer=optimizer, batches=batches, terms=terms, accelerator=accelerator):
            loop.accumulate(model, batches, [1 / terms], losses.supervised_loss, accelerator)
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        seconds = median_seconds(machine, step, 3 if machine.toy else 8)
        plan = plan_finetune(
            config_of(shape), stage=shape.stage, lora=LORA, precision=machine.precision,
            gradient_checkpointing=not machine.toy,
            sharding_mode="none", reduce_dtype="float32", gpus=1, available=10**12, global_batch_size=shape.rows,
            per_device_batch_size=shape.rows, max_length=shape.text, supervised=0.5, text_length=shape.text,
            text_only=0.25, examples=1000, epochs=1, max_steps=None, flops_per_second=peak,
        )  # fmt: skip
        found += [
            (f"finetune {shape.name}", shape.rows / seconds, "examples/s"),
            (f"finetune {shape.name}, MFU", plan.flops / seconds / peak, "of the product"),
            (f"finetune {shape.name}, peak memory", loop.memory_gb(machine.device), "GB"),
            (f"finetune {shape.name}, planned memory", plan.peak / 1e9, "GB"),
        ]
        del model, vlm, optimizer, step
    return found


def evaluation(machine: Machine) -> list[Row]:
    """Questions a second on the 1B: shared prefixes against one at a time."""
    shape = (TOYS if machine.toy else SHAPES)[0]
    model = large_vlm(shape, machine).to(torch.bfloat16 if machine.is_cuda else torch.float32).eval()
    tokenizer = load_tokenizer("miniature")
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    grow_vocabulary(model.llm, max(len(tokenizer), shape.llm["vocab_size"]))
    stop_where_answers_end(model, tokenizer, None)
    processor = build_processor(model, tokenizer)
    size, generator = model.config.image_size, np.random.default_rng(0)
    count, each, rows = (2, 3, 8) if machine.toy else (16, 6, 64)
    pictures = [Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]
    found = []
    for name, kind, text in (
        ("boxes", Generate(24), "Please provide the bounding box of the region this sentence describes: "),
        ("choices", Choose(("A", "B", "C", "D")), "Which of these is right, and why?\nA. B. C. D.\n"),
    ):
        asked = [Question(i, f"{text}{word}", kind) for i in range(count) for word in "abcdef"[:each]]
        speed = {}
        for engine, some in (
            (SharedPrefixEngine(model, processor, rows), asked),
            (PlainEngine(model, processor, 1), asked[: max(4, len(asked) // 6)]),
        ):
            ready = [engine.prepare(picture) for picture in pictures]
            engine.answer(ready, some)  # kernels of every shape are loaded
            machine.wait()
            started = time.perf_counter()
            engine.answer(ready, some)
            machine.wait()
            speed[type(engine)] = len(some) / (time.perf_counter() - started)
        found += [
            (f"{name}, shared prefixes", speed[SharedPrefixEngine], "questions/s"),
            (f"{name}, against one at a time", speed[SharedPrefixEngine] / speed[PlainEngine], "times"),
        ]
    return found


class Folder(torch.utils.data.Dataset):
    """JPEG files through the transform of a backbone."""

    def __init__(self, files, spec):
        self.files, self.transform = files, image_transform(spec)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with open_image(self.files[index]) as file:
            return self.transform(to_rgb(file))


def loading(machine: Machine) -> list[Row]:
    """Images a second that the workers decode and transform for CLIP-L/14-336."""
    generator = np.random.default_rng(0)
    count, workers = (16, 0) if machine.toy else (64, min(16, len(os.sched_getaffinity(0))))
    for number in range(count):
        image = Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
        image.save(machine.folder / f"{number}.jpg", quality=90)
    files = [machine.folder / f"{number}.jpg" for number in range(count)] * (1 if machine.toy else 40)
    loader = iter(DataLoader(Folder(files, get_spec("clip-vit-l-336px")), batch_size=8, num_workers=workers))
    skipped = 0 if machine.toy else 4 * workers
    for _ in itertools.islice(loader, skipped):
        pass
    started = time.perf_counter()
    seen = sum(len(batch) for batch in loader)
    return [(f"loader, {workers} workers", seen / (time.perf_counter() - started), "images/s")]


MEASUREMENTS = [matmul, alignment, finetuning, evaluation, loading]
