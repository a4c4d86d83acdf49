"""Trains a small model in processes that are killed at random moments; started by test_resume.py.

`kill_worker.py OUT PROCESSES KILLS STEPS` trains once without interruption and once with so many kills, if it lasts for
so many, and prints how many there were. Processes are forked from this one: a life is short.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file
from sharded_worker import model_of
from test_loop import examples

from prismatic.checkpoints.writer import AsyncCheckpointer, resume
from prismatic.data import batching, samplers
from prismatic.training import loop, losses, optim, sharding

SIZE, EPOCHS = 8, 6


def train(folder: Path, rank: int, world: int, steps: int, port: int) -> None:
    if world > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
    accelerator = loop.launch("fp32", [], str(folder), world, timeout_minutes=1)
    torch.set_num_threads(1)
    model = model_of("finetune")
    trained = sharding.shard(model, "full", accelerator)
    optimizer = torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-2, fused=True)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    done = resume("auto", folder, accelerator, model, optimizer)
    checkpoints = AsyncCheckpointer(folder, accelerator, model, optimizer, every=1, keep_last=3)
    rows = examples(SIZE * steps // EPOCHS - 3)

    def plan(epoch: int) -> list:
        return samplers.micro_batches(samplers.shuffle_indices(len(rows), SIZE, 0, epoch), rank, world, SIZE, 4)

    def log(metrics: dict) -> None:
        if rank == 0:
            with (folder / "log.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": metrics["step"], "loss": metrics["loss"], "rows": seen[-accumulation:]}) + "\n"
                )

    seen = []

    def collate(items: list) -> dict:
        seen.append([int(item["input_ids"].sum()) for item in items])
        return batching.collate_padded(items, 0)

    accumulation = SIZE // world // 4
    loop.fit(
        accelerator, trained, optimizer, losses.TEXT, total_steps=steps, accumulation=accumulation,
        epochs=batching.epoch_loaders(lambda epoch: rows, collate, plan, EPOCHS, 0, 0, done=done * accumulation),
        rate_at=lambda step: 1e-2 * (1 - step / steps), max_grad_norm=1.0, log=log,
        end_of_epoch=lambda epoch, step: None, after_step=checkpoints.after_step,
        before_update=checkpoints.before_update, should_stop=checkpoints.should_stop, done_steps=done,
    )  # fmt: skip
    checkpoints.close()
    weights = sharding.full_state(model) or model.state_dict()
    if rank == 0:
        save_file({k: v.clone().contiguous() for k, v in weights.items()}, folder / "weights.safetensors")
    accelerator.end_training()


def start(folder: Path, world: int, steps: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                train(folder, rank, world, steps, port)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    return children


def ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:  # it was seen to end before
        return True


def wait(children: list[int], seconds: float) -> list[int]:
    """Those that still run after at most so long."""
    ends = time.monotonic() + seconds
    while (alive := [child for child in children if not ended(child)]) and time.monotonic() < ends:
        time.sleep(0.01)
    return alive


def log_length(folder: Path) -> int:
    """Steps that were logged, those that were taken again included."""
    file = folder / "log.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def main() -> None:
    out, (world, least, steps) = Path(sys.argv[1]), map(int, sys.argv[2:])
    began = time.monotonic()
    assert not wait(start(out / "whole", world, steps), 300) and (out / "whole" / "weights.safetensors").exists()
    step = (time.monotonic() - began) / steps  # its start included: machines differ
    rng, kills = random.Random(world), 0
    while not (out / "killed" / "weights.safetensors").exists():
        assert kills <= least, "it did not finish though nobody killed it"
        alive = start(out / "killed", world, steps)
        if kills == least:
            kills += bool(wait(alive, 300))
            continue
        if rng.random() < 0.2:  # while it starts, or any time in its first few steps
            alive = wait(alive, rng.uniform(0, 4 * step))
        else:
            until = log_length(out / "killed") + rng.randint(1, 2)
            while (alive := wait(alive, 0.01)) and log_length(out / "killed") < until:
                pass
            alive = wait(alive, rng.uniform(0, step))
        if alive:
            os.kill(rng.choice(alive), signal.SIGKILL)
            kills += 1
            time.sleep(0.05)  # the others notice, or not
            for child in wait(alive, 0):
                os.kill(child, signal.SIGKILL)
            assert not wait(alive, 20)
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main()
