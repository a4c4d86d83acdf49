"""The one training loop. A recipe hands it a model, its batches and what the loss of a batch is."""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from prismatic.models.attention import segment_lengths

Batch = dict[str, torch.Tensor]


def supervised_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the supervised positions, the only ones that reach the LM head.

    Rows are right padded (no mask is needed then) or packed into one (`position_ids` restart with each example).
    """
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    keep = targets != -100
    packed = {}
    if "position_ids" in batch:
        packed = {"position_ids": batch["position_ids"], "segment_lengths": segment_lengths(batch["position_ids"])}
    logits = model(
        input_ids=batch["input_ids"],
        pixel_values=batch.get("pixel_values"),
        logits_to_keep=keep,
        use_cache=False,
        **packed,
    ).logits
    return F.cross_entropy(logits.float(), targets[keep], reduction="sum")


def supervised_tokens(batch: Batch) -> int:
    """How many positions the loss of this batch sums over."""
    return int((batch["labels"][:, 1:] != -100).sum())


def accumulate(
    model: torch.nn.Module,
    micro_batches: Sequence[Batch],
    weights: Sequence[float],
    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor],
    accelerator: Accelerator,
) -> list[torch.Tensor]:
    """Adds up the gradients of `weight * loss_sum` over the micro-batches; gives the unweighted sums."""
    sums = []
    for number, (batch, weight) in enumerate(zip(micro_batches, weights, strict=True)):
        last = number == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
            total = loss_sum(model, batch)
        (total * weight).backward()
        sums.append(total.detach())
    return sums


def fit(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: Iterable[Iterable[Batch]],
    total_steps: int,
    accumulation: int,
    rate_at: Callable[[int], float],
    max_grad_norm: float,
    log: Callable[[dict], None],
    end_of_epoch: Callable[[int], None],
    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor] = supervised_loss,
    count: Callable[[Batch], int] = supervised_tokens,
    matmul_peak: float | None = None,
) -> None:
    """Trains for `total_steps` optimizer steps or until the epochs end.

    The loss of a step is summed over its supervised tokens and divided by their number over all micro-batches and
    processes, so that neither accumulation nor the number of processes changes it.

    Args:
        accelerator: gives device, precision and processes.
        model: what is trained, on its device.
        optimizer: its parameter groups' rate is set before every step.
        epochs: this process's micro-batches, epoch by epoch.
        total_steps: optimizer steps of the whole run.
        accumulation: micro-batches of this process that make a step.
        rate_at: learning rate of a 0-based step.
        max_grad_norm: global norm that gradients are clipped to.
        log: takes the metrics of a step.
        end_of_epoch: called with the 0-based epoch when it ends.
        loss_sum: summed loss of a micro-batch.
        count: number of terms in that sum.
        matmul_peak: FLOP/s of a large matrix product, to report MFU.

    Raises:
        ValueError: when no row of a step has anything to predict.
        FloatingPointError: when the loss is not finite; the step is named and not taken.
    """
    model.train()
    step, flops_per_token, skipped = 0, None, 0
    bar = tqdm(total=total_steps, desc="finetune", disable=not accelerator.is_main_process, dynamic_ncols=True)
    for epoch, micro_batches in enumerate(epochs):
        started = time.perf_counter()  # a step's seconds include waiting for its data
        for group in batched(micro_batches, accumulation):
            skipped += sum(b.get("skipped", 0) for b in group)
            group = [to_device(b, accelerator.device) for b in group if b["input_ids"].numel()]
            counts = torch.tensor([sum(map(count, group)), *token_counts(group)], device=accelerator.device)
            supervised, tokens, places = accelerator.reduce(counts, "sum").tolist()
            if not supervised:
                raise ValueError(
                    f"step {step + 1} has nothing to learn from: its rows were skipped for bad images, or cut off "
                    "before the first answer; run python -m prismatic.data.verify, or raise --max_length"
                )
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate_at(step)
            counter = FlopCounterMode(display=False) if flops_per_token is None else nullcontext()
            with counter:
                weights = [accelerator.num_processes / supervised] * len(group)
                sums = accumulate(model, group, weights, loss_sum, accelerator)
            start = torch.zeros((), device=accelerator.device)
            if flops_per_token is None:
                flops_per_token = counter.get_total_flops() / max(1, int(counts[1]))
            loss = accelerator.reduce(sum(sums, start), "sum").item() / supervised
            if not torch.isfinite(torch.tensor(loss)):
                raise FloatingPointError(
                    f"loss is {loss} at step {step + 1}: the step was not taken; the last checkpoint is good. "
                    "Lower the learning rate or look at the data of this step."
                )
            trained = [p for g in optimizer.param_groups for p in g["params"]]
            norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm).item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            seconds = time.perf_counter() - started
            metrics = {
                "step": step + 1,
                "epoch": epoch,
                "loss": loss,
                "learning_rate": rate_at(step),
                "grad_norm": norm,
                "tokens_per_second": tokens / seconds,
                "supervised_tokens": supervised,
                "padding_share": 1 - tokens / places,
                "mfu": flops_per_token * tokens / seconds / matmul_peak if matmul_peak else None,
                "memory_gb": memory_gb(accelerator.device),
                "skipped_images": skipped,
                "seconds": seconds,
            }
            log(metrics)
            bar.set_postfix(loss=f"{loss:.3f}", tok_s=f"{tokens / seconds:.0f}", refresh=False)
            bar.update()
            step, started = step + 1, time.perf_counter()
            if step == total_steps:
                break
        end_of_epoch(epoch)
        if step == total_steps:
            break
    bar.close()


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def token_counts(group: Sequence[Batch]) -> tuple[int, int]:
    """Real tokens and places (padding included) of the micro-batches."""
    places = sum(b["input_ids"].numel() for b in group)
    tokens = sum(int(b["attention_mask"].sum()) if "attention_mask" in b else b["input_ids"].numel() for b in group)
    return tokens, places


def launch(precision: str, trackers: list[str], run_root: str) -> Accelerator:
    """The accelerator of this process, which gets its share of the cores: launchers set one thread even for one.

    Raises:
        ValueError: a tracker is not installed; accelerate itself would leave it out without a word.
    """
    available = [tracker.value for tracker in get_available_trackers()]
    if absent := [name for name in trackers if name not in available]:
        raise ValueError(
            f"tracker {', '.join(absent)} is not installed: pip install it, or leave it out "
            f"(metrics.jsonl is always written); here: {', '.join(available) or 'none'}"
        )
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # absent on macOS
    torch.set_num_threads(max(1, cores // local_processes))
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # else several processes on CPU form no group
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=trackers or None,
        project_dir=run_root,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB: of the accelerator, or resident on CPU."""
    if device.type not in ("cpu", "mps"):
        return torch.accelerator.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def matmul_peak(accelerator: Accelerator) -> float:
    """FLOP/s of a large square matrix product in the run's precision, measured in about a second."""
    device = accelerator.device
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < 1:
        started = time.perf_counter()
        a @ a
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
