"""Which rows make up every optimizer step and every micro-batch, on any number of processes."""

from collections.abc import Sequence

import numpy as np
import torch

REFERENCE_PATCHES = 576  # the reference adds as many to a multimodal length when it looks for the longest batch


def split_modality_indices(
    image_counts: Sequence[int] | np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    global_batch_size: int,
    num_replicas: int,
    seed: int,
    epoch: int,
) -> list[int]:
    """Orders one epoch such that every global batch is all multimodal or all text-only (Prismatic VLMs' sampler).

    Each modality is shuffled and cut into global batches, the last one filled up from the start of its modality; a
    batch is sorted by length and dealt to `num_replicas` buckets of about equal total length; the batches are
    shuffled, and the one with the longest example comes first, so that running out of memory shows at once. Which
    examples form a batch does not depend on `num_replicas`.

    Args:
        image_counts: images of each row, [rows].
        lengths: [rows] in any unit, such as words, without image tokens.
        global_batch_size: examples an optimizer step.
        num_replicas: ranks; divides `global_batch_size`.
        seed: of the whole run.
        epoch: counted from 0.

    Returns:
        Row indices; their number is a multiple of `global_batch_size`. Hand them to `micro_batches`.

    Raises:
        ValueError: there are no rows, or the batch size does not divide.
    """
    accumulation_steps(global_batch_size, num_replicas, 1)
    _check_rows(len(lengths))
    image_counts, lengths = np.asarray(image_counts, dtype=np.int64), np.asarray(lengths)
    generator = torch.Generator().manual_seed(seed + epoch)
    batches = []
    length_of = lengths.tolist()
    for rows in (np.flatnonzero(image_counts), np.flatnonzero(image_counts == 0)):
        if len(rows) == 0:
            continue
        order = fill_batches(rows[torch.randperm(len(rows), generator=generator).numpy()], global_batch_size).tolist()
        for start in range(0, len(order), global_batch_size):
            batches.append(_balance(order[start : start + global_batch_size], length_of, num_replicas))
    batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    full_lengths = lengths + REFERENCE_PATCHES * image_counts
    longest = int(np.argmax([full_lengths[batch].max() for batch in batches]))
    batches[0], batches[longest] = batches[longest], batches[0]
    return [row for batch in batches for row in batch]


def _balance(batch: list[int], lengths: list[int], num_buckets: int) -> list[int]:
    """Deals rows, longest first, each to the emptiest bucket that has room, and joins the buckets."""
    buckets: list[list[int]] = [[] for _ in range(num_buckets)]
    totals = [0.0] * num_buckets
    for row in sorted(batch, key=lengths.__getitem__, reverse=True):
        emptiest = totals.index(min(totals))
        buckets[emptiest].append(row)
        full = len(buckets[emptiest]) == len(batch) // num_buckets
        totals[emptiest] = float("inf") if full else totals[emptiest] + lengths[row]
    return [row for bucket in buckets for row in bucket]


def shuffle_indices(n: int, global_batch_size: int, seed: int, epoch: int) -> list[int]:
    """Shuffles one epoch, repeating rows from its start until global batches are full (torch's DistributedSampler).

    Returns:
        Row indices; their number is a multiple of `global_batch_size`. Hand them to `micro_batches`.

    Raises:
        ValueError: there are no rows.
    """
    _check_rows(n)
    generator = torch.Generator().manual_seed(seed + epoch)
    return fill_batches(torch.randperm(n, generator=generator).numpy(), global_batch_size).tolist()


def fill_batches(order: np.ndarray, global_batch_size: int) -> np.ndarray:
    """An epoch's rows, repeated from the start until global batches are full.

    Raises:
        ValueError: there are no rows.
    """
    _check_rows(len(order))
    return np.resize(order, -(-len(order) // global_batch_size) * global_batch_size)


def _check_rows(n: int) -> None:
    if n == 0:
        raise ValueError("the data set holds 0 rows; expected at least one: check the annotation file")


def micro_batches(
    indices: Sequence[int], rank: int, world_size: int, global_batch_size: int, per_device_batch_size: int
) -> list[Sequence[int]]:
    """The micro-batches of one rank, ready for `DataLoader(batch_sampler=...)`.

    A rank takes its own contiguous part of every global batch. `accumulation_steps(...)` consecutive micro-batches of
    all ranks together are the next `global_batch_size` indices, one optimizer step, whatever the number of ranks.

    Raises:
        ValueError: the batch size does not divide, or `indices` do not fill whole global batches.
    """
    accumulation_steps(global_batch_size, world_size, per_device_batch_size)
    if len(indices) % global_batch_size:
        raise ValueError(
            f"{len(indices)} indices do not fill global batches of {global_batch_size}; "
            "take them from split_modality_indices or shuffle_indices with the same global batch size"
        )
    share = global_batch_size // world_size
    return [
        indices[start : start + per_device_batch_size]
        for step in range(0, len(indices), global_batch_size)
        for start in range(step + rank * share, step + (rank + 1) * share, per_device_batch_size)
    ]


def training_length(epochs: int, max_steps: int | None, steps_per_epoch: int) -> tuple[int, int]:
    """Optimizer steps of a run, and the passes over the data that they begin: `max_steps` may take more than epochs."""
    steps = max_steps or epochs * steps_per_epoch
    return steps, -(-steps // steps_per_epoch)


def share_batch(global_batch_size: int, world_size: int, at_most: int) -> tuple[int, int]:
    """Per-device batch size and accumulation steps: the largest micro-batch up to `at_most` that divides the share.

    Raises:
        ValueError: the processes cannot share the global batch equally.
    """
    accumulation_steps(global_batch_size, world_size, 1)
    share = global_batch_size // world_size
    per_device = max(size for size in range(1, max(1, min(at_most, share)) + 1) if share % size == 0)
    return per_device, share // per_device


def accumulation_steps(global_batch_size: int, world_size: int, per_device_batch_size: int) -> int:
    """Micro-batches a rank runs for one optimizer step.

    Raises:
        ValueError: the global batch cannot be divided so; the closest sizes that can are named.
    """
    for name, size in (("global", global_batch_size), ("per-device", per_device_batch_size)):
        if size < 1:
            raise ValueError(f"the {name} batch size is {size}; expected at least 1")
    at_once = world_size * per_device_batch_size
    if global_batch_size % at_once:
        below = global_batch_size // at_once * at_once
        near = f"{below} or {below + at_once}" if below else f"{at_once}"
        raise ValueError(
            f"global batch size {global_batch_size} is not a multiple of {world_size} processes x "
            f"{per_device_batch_size} examples a device = {at_once}: use {near}, or another per-device batch size"
        )
    return global_batch_size // at_once
