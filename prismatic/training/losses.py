"""What a training step minimises; the loop needs nothing else to know about a task."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prismatic.training.sharding import base_model

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss that is a mean over terms, and how the work of a micro-batch is counted.

    Attributes:
        loss_sum: Loss of the model on a micro-batch, summed over its terms.
        terms: Number of terms in that sum.
        work: Units of real work in a micro-batch, and units with padding; 0 of these are an empty batch.
        unit: What the units are, for rates such as `tokens_per_second`.
        sample: What of a micro-batch suffices to count the operations of a unit.
        prepare: Adds to a micro-batch, while it is on the host, what would make the host wait for a device later.
    """

    loss_sum: Callable[[torch.nn.Module, Batch], torch.Tensor]
    terms: Callable[[Batch], int]
    work: Callable[[Batch], tuple[int, int]]
    unit: str
    sample: Callable[[Batch], Batch] = lambda batch: batch
    prepare: Callable[[torch.nn.Module, Batch], Batch] = lambda model, batch: batch


def with_positions(model: torch.nn.Module, batch: Batch) -> Batch:
    """The batch with the positions that its loss selects: a device that is asked for them makes the host wait.

    Adds `supervised`, int64 [n], the positions in the flattened batch whose next token is supervised;
    `image_positions`, int64 [m], those of image placeholders; and `segment_lengths` of packed rows.
    """
    added = {"supervised": (_targets(batch).flatten() != -100).nonzero().flatten()}
    if batch.get("pixel_values") is not None:
        placeholders = batch["input_ids"] == base_model(model).config.image_token_id
        added["image_positions"] = placeholders.flatten().nonzero().flatten()
    if "position_ids" in batch:
        from prismatic.models.attention import segment_lengths  # imports transformers

        added["segment_lengths"] = segment_lengths(batch["position_ids"])
    return batch | added


def supervised_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the supervised positions, the only ones that reach the LM head.

    Rows are right padded (no mask is needed then) or packed into one (`position_ids` restart with each example).
    """
    if "supervised" not in batch:
        batch = with_positions(model, batch)
    targets, given = _targets(batch), {}
    if "position_ids" in batch:
        given = {name: batch[name] for name in ("position_ids", "segment_lengths")}
    # Of several rows, heads select by a mask alone, for which the host waits.
    keep = batch["supervised"] if len(targets) == 1 else targets != -100
    logits = model(
        input_ids=batch["input_ids"],
        pixel_values=batch.get("pixel_values"),
        image_positions=batch.get("image_positions"),
        logits_to_keep=keep,
        use_cache=False,
        **given,
    ).logits
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten()[batch["supervised"]], reduction="sum")


def _targets(batch: Batch) -> torch.Tensor:
    """The label of every position's next token, `[B, T]`."""
    return F.pad(batch["labels"][:, 1:], (0, 1), value=-100)


def supervised_tokens(batch: Batch) -> int:
    """How many positions the loss of this batch sums over."""
    return int((batch["labels"][:, 1:] != -100).sum())


def token_counts(batch: Batch) -> tuple[int, int]:
    """Real tokens of a micro-batch, and tokens with padding."""
    padded_tokens = batch["input_ids"].numel()
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else padded_tokens, padded_tokens


def image_counts(batch: Batch) -> tuple[int, int]:
    """Images of a micro-batch, twice: nothing is padded."""
    return len(batch["pixel_values"]), len(batch["pixel_values"])


def two_images(batch: Batch) -> Batch:
    """The first two images of a micro-batch: any image takes the same operations, but mixing takes two."""
    images = max(1, len(batch["pixel_values"]))
    sampled = {name: rows[: 2 * len(rows) // images] for name, rows in batch.items() if isinstance(rows, torch.Tensor)}
    return batch | sampled


TEXT = Objective(supervised_loss, supervised_tokens, token_counts, "tokens", prepare=with_positions)
