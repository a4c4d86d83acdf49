"""The one training loop. A recipe hands it a model, its batches and what the loss of a batch is."""

import ctypes
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from tqdm import tqdm

from prismatic.data.batching import batched, to_device
from prismatic.flops import flop_counter
from prismatic.training.losses import Batch, Objective
from prismatic.training.sharding import (
    check_processes,
    clip_gradients,
    computes_in,
    local_processes,
    synchronise_gradients,
)
from prismatic.training.tracking import COUNTS


def accumulate(
    model: torch.nn.Module,
    micro_batches: Sequence[Batch],
    weights: Sequence[float],
    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
) -> list[torch.Tensor]:
    """Adds up the gradients of `weight * loss_sum` over the micro-batches; returns the unweighted sums."""
    sums = []
    for number, (batch, weight) in enumerate(zip(micro_batches, weights, strict=True)):
        synchronise_gradients(model, number == len(micro_batches) - 1)
        with computes_in(model, accelerator):
            total = loss_sum(model, batch)
        (total * weight).backward()
        sums.append(total.detach())
    return sums


def fit(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    *,
    epochs: Iterable[tuple[int, Iterable[Batch]]],
    total_steps: int,
    accumulation: int,
    rate_at: Callable[[int], float],
    max_grad_norm: float,
    log: Callable[[dict], None],
    end_of_epoch: Callable[[int, int], None],
    after_step: Callable[[int, bool], None] = lambda step, stop: None,
    before_update: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
    done_steps: int = 0,
    seed: int = 0,
    matmul_peak: float | None = None,
    remedy: str = "lower the learning rate",
) -> None:
    """Trains until `total_steps` optimizer steps are done or the epochs end.

    The loss of a step is summed over its terms and divided by their number over all micro-batches and processes, so
    that neither accumulation nor the number of processes changes it.

    Args:
        accelerator: gives device, precision and processes.
        model: what is trained, on its device.
        optimizer: its parameter groups' rate is set before every step, times the group's `lr_scale` if it has one.
        objective: what is minimised.
        epochs: number of each epoch and this process's micro-batches in it, from where the run continues.
        total_steps: optimizer steps of the whole run.
        accumulation: micro-batches of this process that make a step.
        rate_at: learning rate of a 0-based step.
        max_grad_norm: global norm that gradients are clipped to.
        log: takes the metrics of a step.
        end_of_epoch: called with the epoch and the steps done when it ends.
        after_step: called after each step with the number of steps done, and whether any process should stop.
        before_update: called before parameters and optimizer states change.
        should_stop: whether this process was asked to stop.
        done_steps: steps done before, in a run that continues.
        seed: dropout draws from it, the step and the process alone, so that a continued run draws the same.
        matmul_peak: FLOP/s of a large matrix product, to report MFU.
        remedy: what to do when the loss is not finite.

    Raises:
        ValueError: a step contains no supervised tokens.
        FloatingPointError: when the loss or a gradient is not finite; the step is named and not taken.
    """
    model.train()
    step, flops_per_unit, unit = done_steps, None, objective.unit
    bar = tqdm(
        total=total_steps, initial=step, desc="training", disable=not accelerator.is_main_process, dynamic_ncols=True
    )
    for epoch, micro_batches in epochs if step < total_steps else ():
        started = time.perf_counter()  # a step's seconds include waiting for its data
        for group in batched(micro_batches, accumulation):
            waited = time.perf_counter() - started
            kinds = [kind for kind in COUNTS if kind in group[0]]
            lost = [sum(b[kind] for b in group) for kind in kinds]
            # Every process runs every micro-batch, even one of which nothing is left: the others wait for it.
            work = [sum(column) for column in zip(*map(objective.work, group), strict=True)]
            counts = [sum(map(objective.terms, group)), *work, int(should_stop()), *lost]
            # Counted and prepared before: the host need not wait for the device.
            group = [to_device(objective.prepare(model, b), accelerator.device) for b in group]
            counts = torch.tensor(counts, device=accelerator.device)
            terms, units, padded_tokens, stop, *lost = accelerator.reduce(counts, "sum").tolist()
            if not terms:
                raise ValueError(
                    f"step {step + 1} contains no supervised tokens: its images cannot be read, or its texts are cut "
                    "off before the first answer; run python -m prismatic.data.verify, or raise --max_length"
                )
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate_at(step) * parameters.get("lr_scale", 1.0)
            if flops_per_unit is None:
                flops_per_unit = count_flops(model, optimizer, group[0], objective, accelerator)
            torch.manual_seed(((seed * 1_000_003 + step) * 65_536 + accelerator.process_index) % 2**64)
            weights = [accelerator.num_processes / terms] * len(group)
            sums = accumulate(model, group, weights, objective.loss_sum, accelerator)
            loss = accelerator.reduce(sum(sums), "sum").item() / terms
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss} at step {step + 1}: the step was not taken; look at its data, or {remedy}"
                )
            trained = [p for g in optimizer.param_groups for p in g["params"]]
            norm = clip_gradients(trained, max_grad_norm)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"gradient norm is {norm} at step {step + 1}: the step was not taken; look at its data, or {remedy}"
                )
            before_update()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            seconds = time.perf_counter() - started
            rate = units / seconds
            metrics = {
                "step": step + 1,
                "epoch": epoch,
                "loss": loss,
                "learning_rate": rate_at(step),
                "grad_norm": norm,
                f"{unit}_per_second": rate,
                "loss_terms": terms,
                "padding_share": 1 - units / padded_tokens,
                "mfu": flops_per_unit * units / seconds / matmul_peak / accelerator.num_processes
                if matmul_peak
                else None,
                "flops": flops_per_unit * units,
                "memory_gb": memory_gb(accelerator.device),
                "seconds": seconds,
                "data_seconds": waited,
                **{COUNTS[kind]: count for kind, count in zip(kinds, lost, strict=True)},
            }
            log(metrics)
            bar.set_postfix(loss=f"{loss:.3f}", **{f"{unit}_s": f"{rate:.0f}"}, refresh=False)
            bar.update()
            step += 1
            after_step(step, bool(stop))
            started = time.perf_counter()
            if step == total_steps:
                break
        end_of_epoch(epoch, step)
        if step == total_steps:
            break
    bar.close()


def count_flops(model, optimizer, batch: Batch, objective: Objective, accelerator: Accelerator) -> float:
    """FLOPs of forward and backward pass a unit of work, counted on a micro-batch of which nothing is kept.

    Not on a real step: the counter takes operations apart, which changes the last bits of what they give.
    """
    batch = objective.sample(batch)
    with flop_counter() as counter:
        accumulate(model, [batch], [0.0], objective.loss_sum, accelerator)
    optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops() / max(1, objective.work(batch)[0])


def launch(
    precision: str, trackers: list[str], run_root: str, processes: int | None = None, timeout_minutes: float = 30
) -> Accelerator:
    """The accelerator of this process, which gets its share of the cores: launchers set one thread even for one.

    Args:
        precision: "bf16" or "fp32".
        trackers: names that accelerate knows.
        run_root: where trackers write.
        processes: how many processes are expected to join; None takes any number.
        timeout_minutes: how long processes wait for one another before they give up.

    Raises:
        ValueError: a tracker is not installed (accelerate itself would leave it out without a word), or other
            processes than expected form a group.
    """
    if not gc.isenabled():  # a command's imports are done, and what they made stays
        gc.enable(), gc.freeze()
    available = [tracker.value for tracker in get_available_trackers()]
    if absent := [name for name in trackers if name not in available]:
        raise ValueError(
            f"tracker {', '.join(absent)} is not installed: pip install it, or leave it out "
            f"(metrics.jsonl is always written); here: {', '.join(available) or 'none'}"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # absent on macOS
    torch.set_num_threads(max(1, cores // local_processes()))
    keep_freed_memory()
    # cuDNN's attention makes a plan for every new length, and packed rows have many: 1.65 s a step, 0.05 without.
    torch.backends.cuda.enable_cudnn_sdp(False)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes on CPU form no group
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=trackers or None,
        project_dir=run_root,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes)),
        ],
    )
    check_processes(accelerator.num_processes, processes)
    return accelerator


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed: large tensors on CPU else cost fresh pages, a tenth of a step's time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):  # macOS, Windows, musl
        return
    trim_threshold, mmap_threshold = -1, -3  # numbers in malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**30)


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB: of the accelerator, or resident on CPU."""
    if device.type not in ("cpu", "mps"):
        return torch.accelerator.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def matmul_peak(accelerator: Accelerator) -> float:
    """FLOP/s of a large square matrix product in the run's precision, the best of a quarter of a second."""
    device = accelerator.device
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)

    def seconds() -> float:
        started = time.perf_counter()
        a @ a
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    seconds()  # loads the library
    best, ends = seconds(), time.perf_counter() + 0.25
    while time.perf_counter() < ends:
        best = min(best, seconds())
    return 2 * side**3 / best
