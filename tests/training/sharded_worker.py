"""One process of a group that trains small models in every way there is; started by test_sharding.py with torchrun.

`sharded_worker.py OUT CASE...` writes losses and whole final weights of every case to OUT/WORLD/CASE.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from test_loop import examples, tiny_model

from prismatic.checkpoints.writer import AsyncCheckpointer, resume
from prismatic.data.batching import collate_padded
from prismatic.models import stages
from prismatic.models.stages import as_stage
from prismatic.training import loop, losses, optim, sharding

STEPS, SIZE = 4, 16
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "down_proj"]}
CASES = {
    "none": {"mode": "none"},
    "full": {},
    "micro-batches-of-2": {"micro": 2},
    "grad-op": {"mode": "grad-op"},
    "hybrid": {"mode": "hybrid"},
    "text-on-one-side": {"order": "text last"},
    "text-steps": {"order": "text steps"},
    "text-steps-none": {"order": "text steps", "mode": "none"},
    "empty-last": {"order": "empty last"},
    "empty-last-none": {"order": "empty last", "mode": "none"},
    "lora": {"stage": "lora"},
    "align": {"stage": "align"},
    "full-finetune": {"stage": "full-finetune"},
    "checkpointed": {"checkpointing": True},
    "bf16": {"precision": "bf16"},
}


def items_of(step: int, order: str) -> list:
    """The examples of a step, None for what could not be read."""
    items = examples(SIZE, seed=step)
    texts = [item for item in items if item["pixel_values"] is None]
    pictured = [item for item in items if item["pixel_values"] is not None]
    if order == "text last":
        return pictured + texts
    if order == "text steps" and step in (1, 2):
        return [texts[i % len(texts)] for i in range(SIZE)]
    if order == "empty last":
        return items[: SIZE - 4] + [None] * 4
    return items


def model_of(stage: str, checkpointing: bool = False, precision: str = "fp32"):
    model = as_stage(tiny_model(), stage, LORA)  # seeded by tiny_model
    if precision == "bf16":
        stages.halve_frozen(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    return model


def train(accelerator, *, mode="full", micro=4, order="", stage="finetune", checkpointing=False, precision="fp32",
          folder: Path | None = None, until=STEPS, save_at=None):  # fmt: skip
    """Trains; gives losses and final weights. With `folder` it resumes from what lies there, and may save."""
    model = model_of(stage, checkpointing, precision)
    trained = sharding.shard(model, mode, accelerator)
    optimizer = torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-2, fused=True)
    done, logged, options = 0, [], {}
    if folder:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        done = resume("auto", folder, accelerator, model, optimizer)
        checkpoints = AsyncCheckpointer(folder, accelerator, model, optimizer, every=save_at)
        options = {"after_step": checkpoints.after_step, "before_update": checkpoints.before_update}
    share = SIZE // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    collate = partial(collate_padded, pad_token_id=0)
    batches = [
        collate(items[i : i + micro])
        for items in (items_of(step, order)[mine] for step in range(done, until))
        for i in range(0, share, micro)
    ]
    loop.fit(
        accelerator, trained, optimizer, losses.TEXT, epochs=[(0, batches)], total_steps=until,
        accumulation=share // micro, rate_at=lambda step: 1e-2, max_grad_norm=1.0, log=logged.append,
        end_of_epoch=lambda epoch, step: None, done_steps=done, **options,
    )  # fmt: skip
    if folder:
        checkpoints.close()
    weights = sharding.full_state(model) if trained is model and accelerator.num_processes > 1 else model.state_dict()
    return [row["loss"] for row in logged], weights


def main() -> None:
    out, cases = Path(sys.argv[1]), sys.argv[2:]
    if world := os.environ.get("NODES_OF"):  # as if this machine were several nodes
        os.environ["LOCAL_WORLD_SIZE"] = world
    for precision in ("fp32", "bf16"):
        for case in (case for case in cases if (case == "bf16") == (precision == "bf16")):
            AcceleratorState._reset_state()
            accelerator = loop.launch(precision, [], str(out), timeout_minutes=1)
            torch.set_num_threads(1)
            if case.startswith("resume"):
                mode = "none" if "ddp" in case else "full"
                folder, until = out / case[:-2], int(case[-1])
                step_losses, weights = train(accelerator, mode=mode, folder=folder, save_at=2, until=until)
            else:
                step_losses, weights = train(accelerator, **CASES[case])
            if accelerator.is_main_process:
                place = out / str(accelerator.num_processes)
                place.mkdir(parents=True, exist_ok=True)
                save_file({k: v.clone().contiguous() for k, v in weights.items()}, place / f"{case}.safetensors")
                (place / f"{case}.json").write_text(json.dumps(step_losses))
    accelerator.end_training()


if __name__ == "__main__":
    main()
