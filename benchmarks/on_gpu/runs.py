"""Whole runs on the device: interrupted and resumed, sharded, on two devices."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from on_gpu.models import FP32, Machine, Skipped, accelerator_of, difference, rows, small_vlm
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from prismatic.checkpoints import writer as saving
from prismatic.data.batching import collate_padded
from prismatic.models import stages
from prismatic.training import loop, optim, sharding
from prismatic.training.losses import TEXT
from prismatic.training.tracking import read_metrics
from recipes.config.finetune import parse_finetune

ROOT = Path(__file__).resolve().parents[2]
FINETUNE = (
    "--data.annotations miniature:48 --data.workers 0 --data.held_out_limit 1 --eval_tasks [] --precision fp32 "
    "--global_batch_size 8 --per_device_batch_size 4 --max_steps 3 --save_every_steps 1"
).split()


def finetune(machine: Machine, name: str, *more: str) -> tuple[list[float], dict]:
    """Losses and weights of a small run of the real recipe."""
    from recipes.finetune import main

    AcceleratorState._reset_state(reset_partial_state=True)
    main(parse_finetune([*FINETUNE, "--run_root", str(machine.folder), "--run_id", name, *more]))
    return results(machine.folder / name)


def results(run: Path) -> tuple[list[float], dict]:
    """Losses and weights of a run, whose last step was checkpointed: a save that fails does not end a run."""
    assert (run / "checkpoints" / "step-00000003").is_dir(), "the checkpoint of the last step was not written"
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]
    return losses, load_file(run / "checkpoints" / "epoch-01" / "model.safetensors")


@contextlib.contextmanager
def deterministic():
    """Algorithms that give the same bits every time; memory-efficient attention adds up in any order."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cuda.enable_mem_efficient_sdp(before[1])


@contextlib.contextmanager
def interrupted_at(step: int):
    """The optimizer step of that number raises KeyboardInterrupt."""
    taken, real = [], torch.optim.AdamW.step

    def counted(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    torch.optim.AdamW.step = counted
    try:
        yield
    finally:
        torch.optim.AdamW.step = real


def resume(machine: Machine) -> str:
    """A run that is interrupted resumes bit for bit, with deterministic algorithms."""
    with deterministic():
        losses, weights = finetune(machine, "whole")
        with interrupted_at(2), contextlib.suppress(KeyboardInterrupt):
            finetune(machine, "stopped")
        again, same = finetune(machine, "stopped")
    assert len(losses) == 3 and again == losses, f"losses {again}, uninterrupted {losses}"
    changed = [name for name, value in weights.items() if not torch.equal(same[name], value)]
    assert not changed, f"{len(changed)} of {len(weights)} tensors differ, such as {changed[0]}"
    return f"3 steps, {len(weights)} tensors"


@contextlib.contextmanager
def alone_in_a_group():
    """This process as the only one of a group, as torchrun would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": port}
    os.environ.update(names | {"MASTER_ADDR": "127.0.0.1"})
    try:
        yield
    finally:
        for name in (*names, "MASTER_ADDR"):
            os.environ.pop(name, None)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def sharded(machine: Machine) -> str:
    """Steps under FSDP2 in a world of one = without it, and its checkpoint is read back bit for bit."""
    _needs_sharding()

    def train(accelerator, shards: bool, steps: int, folder: Path | None = None):
        model = small_vlm()
        stages.set_trainable(model, "finetune")
        model.to(machine.device)
        if shards:
            sharding.fully_sharded(model, "full", accelerator)
        optimizer = torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-3, fused=True)
        done, losses, options = 0, [], {}
        if folder:
            done = saving.resume("auto", folder, accelerator, model, optimizer)
            checkpoints = saving.AsyncCheckpointer(folder, accelerator, model, optimizer, every=steps)
            options = {"after_step": checkpoints.after_step, "before_update": checkpoints.before_update}
        batches = [collate_padded(rows(8, model.vision_backbone.num_tokens, 32), 0) for _ in range(done, steps)]
        loop.fit(
            accelerator, model, optimizer, TEXT, epochs=[(1, batches)], total_steps=steps, accumulation=1,
            rate_at=lambda step: 1e-3, max_grad_norm=1.0, log=lambda row: losses.append(row["loss"]),
            end_of_epoch=lambda epoch, step: None, done_steps=done, **options,
        )  # fmt: skip
        if folder:
            checkpoints.close()
        state = {name: value.full_tensor() if shards and hasattr(value, "full_tensor") else value
                 for name, value in model.state_dict().items()}  # fmt: skip
        return losses, {name: value.detach().cpu().clone() for name, value in state.items()}

    losses, weights = train(accelerator_of("fp32", machine.folder), False, 4)
    folder = machine.folder / "fsdp"
    (folder / "checkpoints").mkdir(parents=True)
    with alone_in_a_group(), deterministic():
        accelerator = accelerator_of("fp32", machine.folder)
        assert torch.distributed.is_initialized(), "no group was made"
        sharp, same = train(accelerator, True, 4)
        first, _ = train(accelerator, True, 2, folder)
        rest, again = train(accelerator, True, 4, folder)
    said = _as_plain(sharp, same, (losses, weights))
    assert len(rest) == 2 and first + rest == sharp, f"losses {first + rest}, uninterrupted {sharp}"
    changed = [name for name, value in same.items() if not torch.equal(again[name], value)]
    assert not changed, f"{len(changed)} tensors differ after resuming, such as {changed[0]}"
    return said


def two_devices(machine: Machine) -> str:
    """The recipe sharded over two devices under torchrun, its checkpoints beside NCCL, = on one."""
    if not machine.is_cuda or torch.cuda.device_count() < 2:
        raise Skipped("needs two GPUs")
    _needs_sharding()
    if not (machine.folder / "whole").is_dir():
        finetune(machine, "whole")
    expected = results(machine.folder / "whole")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "NVIDIA_TF32_OVERRIDE": "0"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    place = ["--run_root", str(machine.folder), "--run_id", "two", "--sharding", "full", "--processes", "2"]
    done = subprocess.run(
        [*torchrun, "recipes/finetune.py", *FINETUNE, *place], capture_output=True, text=True, timeout=240,
        cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return _as_plain(*results(machine.folder / "two"), expected)


def _as_plain(losses, weights, expected) -> str:
    share = max(abs(a / b - 1) for a, b in zip(losses, expected[0], strict=True))
    assert share <= FP32, f"losses {losses}, of the plain run {expected[0]}"
    return f"losses differ by {share:.1e}, weights by {difference(weights, expected[1]):.1e}"


def _needs_sharding() -> None:
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise Skipped(f"torch {torch.__version__} does not shard as this code asks: 2.13 does")
