"""Run by test_plan.py in its own processes: real optimizer steps, and the peak of what torch allocated in the second.

The peak is the sum over the allocations and frees that torch's profiler saw in its allocator.
"""

import json
import sys

import torch
from plan_cases import CASES, LORA, SUPERVISED, TEXT, Case, small_config
from torch import nn

from prismatic import PrismaticForConditionalGeneration
from prismatic.models import stages
from prismatic.models.stages import as_stage
from prismatic.training import loop, losses, optim, sharding


def build(stage: str, precision: str, checkpointing: bool, layers: int = 6) -> nn.Module:
    torch.manual_seed(0)
    model = PrismaticForConditionalGeneration(small_config(layers))
    model.llm.set_attn_implementation("sdpa")
    model = as_stage(model, stage, LORA)
    if precision == "bf16":
        stages.halve_frozen(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def batch_of(model: nn.Module, rows: int) -> losses.Batch:
    vlm = sharding.base_model(model)
    patches = vlm.vision_backbone.num_tokens
    ids = torch.randint(3, 1000, (rows, TEXT + patches))
    ids[:, 1 : 1 + patches] = vlm.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -round((TEXT - 1) * SUPERVISED) :] = ids[:, -round((TEXT - 1) * SUPERVISED) :]
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(rows, 3, 224, 224)}


def main(case: Case, layers: int) -> None:
    accelerator = loop.launch(case.precision, [], ".")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = build(case.stage, case.precision, case.checkpointing, layers)
        batches = [batch_of(model, case.rows) for _ in range(case.accumulation)]
        weights = [1 / sum(map(losses.TEXT.terms, batches))] * case.accumulation
        model = sharding.shard(model, case.sharding, accelerator)
        groups = optim.parameter_groups(model.named_parameters(), 0.1)
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
        for _ in range(2):
            with torch.profiler.record_function("step"):
                loop.accumulate(model, batches, weights, losses.TEXT.loss_sum, accelerator)
                sharding.clip_gradients([p for g in groups for p in g["params"]], 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    alive = peak = 0
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    second = max(e.start_ns() for e in events if e.name() == "step")
    for event in events:
        if event.name() == "[memory]":
            alive += event.nbytes()
            if event.start_ns() >= second:
                peak = max(peak, alive)
    if accelerator.is_main_process:
        print(json.dumps({"allocated": peak}))


if __name__ == "__main__":
    main(CASES[sys.argv[1]], int(sys.argv[2]))
