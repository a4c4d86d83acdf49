"""Memory, arithmetic and hours of a finetune, before it is started: no accelerator, no weights, no network.

Activations come from `prismatic.planning.fake_step`, which runs the step without data; the rest is what
`prismatic.training.sharding` does with parameters, gradients and optimizer states.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from prismatic.data.samplers import accumulation_steps, training_length
from prismatic.models import stages
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.lora import linear_layers
from prismatic.models.quantize import quantized_bytes
from prismatic.planning.fake_step import Step, meta_model
from prismatic.training import sharding

PER_NODE = 8  # accelerators of a node
ADAMW_BYTES = 8  # two float32 moments of a trained parameter


@dataclass(frozen=True)
class Sizes:
    """What a model holds, by what sharding does with it.

    Attributes:
        trained: Trained parameters, kept in float32.
        trained_tensors: How many tensors these are.
        replicated: Bytes of a frozen vision tower and of buffers, which every process holds.
        frozen: Bytes of the other frozen parameters.
        root: Parameters outside of blocks, gathered for the whole forward and the whole backward pass.
        block: Parameters of the largest block, gathered while it computes.
        block_trained: Of the largest block, those trained.
        dequantized: Bytes of the largest quantised matrix, as it is computed with.
    """

    trained: int
    trained_tensors: int
    replicated: int
    frozen: int
    root: int
    block: int
    block_trained: int
    dequantized: int = 0


@dataclass(frozen=True)
class Plan:
    """What a finetune needs. Bytes are those of one process at the moment of its peak.

    Attributes:
        memory: Bytes by part; the parts add up to the peak.
        available: Bytes that tensors may take.
        per_device_batch_size: Examples of a micro-batch.
        accumulation: Micro-batches of a step on one process.
        largest_batch: The largest per-device batch size that fits and divides a process's share of the global batch; 0
            if none does.
        parameters: Rows `(part, trained, frozen)`.
        tokens: Tokens of a mean example with its image.
        flops: Floating-point operations of an optimizer step, on all processes, recomputation included.
        steps: Optimizer steps of the run.
        passes: How often that goes through the data.
        hours: Hours of all steps.
    """

    memory: dict[str, int]
    available: int
    per_device_batch_size: int
    accumulation: int
    largest_batch: int
    parameters: list[tuple[str, int, int]]
    tokens: int
    flops: int
    steps: int
    passes: float
    hours: float

    @property
    def peak(self) -> int:
        """Bytes of all parts."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is available."""
        return self.peak <= self.available


@dataclass(frozen=True)
class Process:
    """One of the processes that train a model.

    Args:
        sizes: of the model.
        events: bytes alive `[events, 4]` in micro-batches of two and of three rows.
        sharding: "full", "grad-op", "hybrid" or "none".
        gpus: processes.
        global_batch_size: examples of an optimizer step.
        compute_bytes: of a parameter in the precision of the computation.
        reduce_bytes: of a sharded gradient while it is summed over processes.
    """

    sizes: Sizes
    events: tuple[torch.Tensor, torch.Tensor]
    sharding: str
    gpus: int
    global_batch_size: int
    compute_bytes: int
    reduce_bytes: int

    def memory(self, per_device: int) -> dict[str, int]:
        """Bytes by part at the peak, with this many rows in a micro-batch."""
        accumulates = accumulation_steps(self.global_batch_size, self.gpus, per_device) > 1
        two, three = self.events
        activations, logits, of_blocks, of_root = (two + (per_device - 2) * (three - two)).unbind(1)
        s, zero = self.sizes, torch.zeros_like(activations)
        if sharding.shards(self.sharding, self.gpus):
            ranks = min(self.gpus, PER_NODE) if self.sharding == "hybrid" else self.gpus
            gradients = of_blocks * 4 // self.compute_bytes // ranks
            if accumulates:
                gradients = zero + 4 * s.trained // ranks
            # One block computes while the next arrives; grad-op frees nothing until the backward pass has used it.
            gathered = (
                s.trained + s.frozen // self.compute_bytes if self.sharding == "grad-op" else s.root + 2 * s.block
            )
            gathered *= self.compute_bytes
            # The root's gradients wait for its last one; a block's are there twice while they are summed.
            communication = of_root + s.block_trained * (self.compute_bytes + self.reduce_bytes)
        else:
            ranks, gathered = 1, 0
            gradients = zero + 4 * s.trained if accumulates else of_blocks + of_root
            communication = zero + (4 * s.trained if self.gpus > 1 else 0)  # the buckets of DDP
        peak = int((activations + logits + gradients + communication).argmax())
        return {
            "parameters": s.replicated + (4 * s.trained + s.frozen) // ranks,
            "gathered parameters": gathered,
            "gradients": int(gradients[peak]),
            "optimizer states": ADAMW_BYTES * s.trained // ranks + 4 * s.trained_tensors,
            "communication": int(communication[peak]),
            "activations": int(activations[peak]),
            "logits": int(logits[peak]),
            **({"dequantized matrix": s.dequantized} if s.dequantized else {}),
        }

    def largest_batch(self, available: int) -> int:
        """The largest per-device batch size that fits and divides this process's share; 0 if none does."""
        share = self.global_batch_size // self.gpus
        sizes = (size for size in range(share, 0, -1) if share % size == 0)
        return next((size for size in sizes if sum(self.memory(size).values()) <= available), 0)


def plan_finetune(
    config: PrismaticConfig,
    *,
    stage: str,
    lora: dict,
    precision: str,
    gradient_checkpointing: bool,
    sharding_mode: str,
    reduce_dtype: str,
    gpus: int,
    available: int,
    global_batch_size: int,
    per_device_batch_size: int,
    max_length: int,
    supervised: float,
    text_length: int,
    text_only: float,
    examples: int,
    epochs: int,
    max_steps: int | None,
    flops_per_second: float,
    quantize: str | None = None,
) -> Plan:
    """What a finetune of this model needs.

    Memory is that of the longest micro-batch, all rows with an image and `max_length` text tokens. Arithmetic is that
    of mean examples, without padding.

    Args:
        config: the model.
        stage: of the finetune.
        lora: arguments of `add_lora`, used by stage "lora".
        precision: "bf16" or "fp32".
        gradient_checkpointing: blocks of the LLM are computed again in the backward pass.
        sharding_mode: "full", "grad-op", "hybrid" (within nodes of 8) or "none".
        reduce_dtype: of sharded gradients while they are summed.
        gpus: processes.
        available: bytes of each that tensors may take.
        global_batch_size: examples of an optimizer step.
        per_device_batch_size: examples of a micro-batch.
        max_length: text tokens of the longest example.
        supervised: share of them that is supervised.
        text_length: text tokens of a mean example.
        text_only: share of the examples without an image.
        examples: of the data set.
        epochs: passes over it.
        max_steps: optimizer steps, whatever the epochs; None for those of the epochs.
        flops_per_second: that one process reaches.
        quantize: "4bit" or "8bit" for a frozen LLM.

    Raises:
        ValueError: the processes cannot share the batch, or the sharding mode does not fit them.
    """
    sharding.check_sharding(sharding_mode, gpus, per_node=min(gpus, PER_NODE))
    accumulation = accumulation_steps(global_batch_size, gpus, per_device_batch_size)
    model = meta_model(
        config, stage, lora=lora, precision=precision, gradient_checkpointing=gradient_checkpointing
    )  # fmt: skip
    sizes, parameters = measure(model), stages.trained_and_frozen(model)
    if quantize:
        if sharding.shards(sharding_mode, gpus):
            raise ValueError("--quantize does not shard the LLM: set --sharding none, or leave it out")
        saved, largest = _quantized(model, quantize)
        sizes = replace(sizes, frozen=sizes.frozen - saved, dequantized=largest * (2 if precision == "bf16" else 4))
    step = Step(model, precision, sharded=sharding.shards(sharding_mode, gpus), supervised=supervised)
    process = Process(
        sizes,
        (step.memory(2, max_length), step.memory(3, max_length)),
        sharding_mode,
        gpus,
        global_batch_size,
        compute_bytes=2 if precision == "bf16" else 4,
        reduce_bytes=2 if reduce_dtype == "bfloat16" else 4,
    )
    flops = (1 - text_only) * step.flops(text_length, image=True)
    flops += text_only * step.flops(text_length, image=False) if text_only else 0
    per_epoch = -(-examples // global_batch_size)
    steps, _ = training_length(epochs, max_steps, per_epoch)
    return Plan(
        process.memory(per_device_batch_size),
        available,
        per_device_batch_size,
        accumulation,
        process.largest_batch(available),
        parameters,
        tokens=text_length + step.base.vision_backbone.num_tokens,
        flops=int(flops * global_batch_size),
        steps=steps,
        passes=steps / per_epoch,
        hours=steps * flops * global_batch_size / gpus / flops_per_second / 3600,
    )


def measure(model: nn.Module) -> Sizes:
    """The sizes of a model whose frozen parameters have the precision that they are kept in."""
    tower = sharding.frozen_tower(model)
    blocks = [list(block.parameters()) for block in sharding.blocks(model)]
    inside = {p for block in blocks for p in block}
    root = [p for p in model.parameters() if p not in inside and p not in tower]
    largest = max(blocks, key=_count)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad and p not in tower]
    return Sizes(
        trained=_count(trained),
        trained_tensors=len(trained),
        replicated=sum(t.numel() * t.element_size() for t in (*tower, *model.buffers())),
        frozen=sum(p.numel() * p.element_size() for p in frozen),
        root=_count(root),
        block=_count(largest),
        block_trained=_count(p for p in largest if p.requires_grad),
    )


def _quantized(model: nn.Module, kind: str) -> tuple[int, int]:
    """Bytes that the frozen linear layers of the LLM's blocks take less in 4 or 8 bits, and weights of the largest."""
    llm = sharding.base_model(model).llm
    modules = dict(llm.named_modules())
    layers = [modules[name] for name in linear_layers(llm)[0]]
    weights = [m.weight for m in layers if isinstance(m, nn.Linear) and not m.weight.requires_grad]
    saved = sum(w.numel() * w.element_size() - quantized_bytes(w.numel(), len(w), kind) for w in weights)
    return saved, max(w.numel() for w in weights)


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters)
