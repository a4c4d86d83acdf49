"""What a training step minimises; the loop needs nothing else to know about a task."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prismatic.models.attention import segment_lengths

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss that is a mean over terms, and how the work of a micro-batch is counted.

    Attributes:
        loss_sum: Loss of the model on a micro-batch, summed over its terms.
        terms: Number of terms in that sum.
        work: Units of real work in a micro-batch, and places with padding; 0 places are an empty batch.
        unit: What the units are, for rates such as `tokens_per_second`.
        sample: What of a micro-batch suffices to count the operations of a unit.
    """

    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor]
    terms: Callable[[Batch], int]
    work: Callable[[Batch], tuple[int, int]]
    unit: str
    sample: Callable[[Batch], Batch] = lambda batch: batch


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


def token_counts(batch: Batch) -> tuple[int, int]:
    """Real tokens and places (padding included) of a micro-batch."""
    places = batch["input_ids"].numel()
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else places, places


def image_counts(batch: Batch) -> tuple[int, int]:
    """Images of a micro-batch, twice: nothing is padded."""
    return len(batch["pixel_values"]), len(batch["pixel_values"])


def two_images(batch: Batch) -> Batch:
    """The first two images of a micro-batch: any image takes the same operations, but mixing takes two."""
    images = max(1, len(batch["pixel_values"]))
    sampled = {name: rows[: 2 * len(rows) // images] for name, rows in batch.items() if isinstance(rows, torch.Tensor)}
    return batch | sampled


TEXT = Objective(supervised_loss, supervised_tokens, token_counts, "tokens")
