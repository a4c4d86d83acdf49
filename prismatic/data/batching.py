"""From rows to batches: how examples become tensors, and reach a device."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from prismatic.data.image_stores import BadImageError
from prismatic.text.conversations import IGNORE_INDEX

if TYPE_CHECKING:  # 100 MB of libraries that read tables, which training on images alone needs not
    from prismatic.data.conversation_source import ConversationSource

Example = dict[str, Any]
_NOTHING: Example = {"input_ids": torch.tensor([0]), "labels": torch.tensor([IGNORE_INDEX]), "pixel_values": None}


class TrainingExamples(Dataset):
    """Encoded rows with their pixels, decoded where they are asked for (in a `DataLoader`'s workers).

    `examples[i]` gives `{"input_ids": int64 [T], "labels": int64 [T], "pixel_values": [images, C, H, W] or None, "cut":
    tokens beyond the length}`, or None for a bad image that is to be skipped.
    """

    def __init__(
        self,
        source: "ConversationSource",
        encode: Callable[[dict[str, Any]], Sequence],
        transform: Callable[[Any], Tensor],
        on_bad_image: str = "error",
    ):
        """Joins rows, tokenisation and image transform.

        Args:
            source: the rows and their images.
            encode: gives input ids and labels of a row, image placeholders included, and may say how many tokens of
                text it has cut.
            transform: gives pixels [C, H, W] of an RGB image.
            on_bad_image: "error" stops at a missing or corrupt image, "skip" leaves its row out. A path that leads
                out of the image root is always an error.

        Raises:
            ValueError: `on_bad_image` is neither.
        """
        if on_bad_image not in ("error", "skip"):
            raise ValueError(f"on_bad_image is {on_bad_image!r}; expected 'error' or 'skip'")
        self.source, self.encode, self.transform, self.on_bad_image = source, encode, transform, on_bad_image

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example | None:
        return self.encoded(self.source[index], lambda: self.source.load_images(index))

    def encoded(self, row: dict[str, Any], load_images: Callable[[], list]) -> Example | None:
        """The example of a row, whose images `load_images` decodes."""
        try:
            pixels = [self.transform(image) for image in load_images()]
        except BadImageError:
            if self.on_bad_image == "error":
                raise
            return None
        input_ids, labels, *cut = self.encode(row)
        return {
            "input_ids": torch.as_tensor(input_ids, dtype=torch.long),
            "labels": torch.as_tensor(labels, dtype=torch.long),
            "pixel_values": torch.stack(pixels) if pixels else None,
            "cut": sum(cut),
        }


def collate_padded(items: Sequence[Example | None], pad_token_id: int) -> dict[str, Any]:
    """Pads examples on the right into one batch.

    Returns:
        `input_ids`, `labels` (-100 on padding) and `attention_mask` (1 on tokens), int64 [B, T]; `pixel_values`
        [M, C, H, W] of all images, in order, or None (an example's may lack the first dimension); `skipped`, the number
        of items that were None; `cut_rows` and `cut_tokens`, how many were cut and by how much.
        A batch of which nothing is left is one token of padding: processes must go through as many batches.
    """
    kept = [item for item in items if item is not None] or [_NOTHING | {"input_ids": torch.tensor([pad_token_id])}]
    return {
        "input_ids": pad_sequence([item["input_ids"] for item in kept], True, pad_token_id),
        "labels": pad_sequence([item["labels"] for item in kept], True, IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(item["input_ids"]) for item in kept], True, 0),
        **_pixels_and_counts(items),
    }


def collate_packed(items: Sequence[Example | None]) -> dict[str, Any]:
    """Joins examples into one row without padding; `position_ids` restart at 0 where an example starts.

    The label of every example's first token becomes -100, so that shifted labels never predict across examples.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [1, T]; `pixel_values` and counts as in `collate_padded`.
        A batch of which nothing is left is one token without a label.
    """
    kept = [item for item in items if item is not None] or [_NOTHING]
    positions = torch.cat([torch.arange(len(item["input_ids"])) for item in kept])
    labels = torch.cat([item["labels"] for item in kept])
    return {
        "input_ids": torch.cat([item["input_ids"] for item in kept])[None],
        "labels": labels.masked_fill(positions == 0, IGNORE_INDEX)[None],
        "position_ids": positions[None],
        **_pixels_and_counts(items),
    }


def _pixels_and_counts(items: Sequence[Example | None]) -> dict[str, Any]:
    pixels = [item["pixel_values"] for item in items if item is not None and item["pixel_values"] is not None]
    return {
        "pixel_values": torch.cat([one.reshape(-1, *one.shape[-3:]) for one in pixels]) if pixels else None,
        "skipped": sum(item is None for item in items),
        "cut_rows": sum(item.get("cut", 0) > 0 for item in items if item is not None),
        "cut_tokens": sum(item.get("cut", 0) for item in items if item is not None),
    }


def epoch_loaders(
    examples: Callable[[int], Dataset],
    collate: Callable,
    plan: Callable[[int], Sequence[Sequence[int]]],
    epochs: int,
    workers: int,
    seed: int,
    done: int = 0,
) -> Iterator[tuple[int, DataLoader]]:
    """Number and loader of every epoch: micro-batches of `examples(epoch)` in the order of `plan(epoch)`.

    The first `done` micro-batches of the whole run are left out, for a run that continues.
    """
    for epoch in range(epochs):
        batches = plan(epoch)
        batches, done = batches[done:], max(0, done - len(batches))
        if len(batches) == 0:
            continue
        yield epoch, loader(examples(epoch), collate, workers, seed + epoch, batch_sampler=batches)


def loader(examples: Dataset, collate: Callable, workers: int, seed: int, **cut) -> DataLoader:
    """A loader of examples, which are cut into micro-batches as DataLoader's `batch_sampler` or `batch_size` says."""
    return DataLoader(
        examples,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.accelerator.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else iterating would draw from the global one
        **cut,
    )


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
