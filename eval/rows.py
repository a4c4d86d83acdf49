"""The rows of a batch that is being written: their cache, with room for what is to come, and which tokens are real."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer


@dataclass
class Rows:
    """A batch that is being written, each row after the prefix of an image.

    Attributes:
        cache: Of the rows' own tokens, padded on the left.
        images: Which prefix each row continues.
        mask: `[rows, room]`, False where padding is; True where tokens are still to come.
        positions: `[rows, 1]`, of the last token.
        length: Tokens in the cache, padding included.
        logits: `[rows, kept, vocabulary]` after the texts that were read.
    """

    cache: Cache
    images: list[int]
    mask: torch.Tensor
    positions: torch.Tensor
    length: int
    logits: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all other rows; logits stay as they are."""
        self.cache.batch_select_indices(rows)
        self.images = [self.images[row] for row in rows.tolist()]
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def grow(self, new: int) -> None:
        """Makes room for `new` more tokens than there is."""
        self._pad(0, new)

    def join(self, other: "Rows") -> None:
        """Takes the rows of another batch, which ends with this; images are numbered as before in both."""
        left = self.length - other.length
        self._pad(max(0, -left), 0), other._pad(max(0, left), 0)
        right = self.mask.shape[1] - other.mask.shape[1]
        self._pad(0, max(0, -right)), other._pad(0, max(0, right))
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.join(its)
        self.images = self.images + other.images
        self.mask, self.positions = torch.cat([self.mask, other.mask]), torch.cat([self.positions, other.positions])

    def _pad(self, left: int, right: int) -> None:
        if left or right:
            for layer in self.cache.layers:
                layer.pad(left, right)
            self.mask = pad(pad(self.mask, (left, 0)), (0, right), value=True)
            self.length += left


class RoomyLayer(DynamicLayer):
    """A cache layer with room for what is still to come: growing by concatenation would copy everything each token."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, start: int):
        """Takes room for keys and values `[rows, heads, room, width]`, of which `start` tokens are filled."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._set(keys, values, start)

    def _set(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        self._keys, self._values = keys, values
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As `DynamicLayer` does."""
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        self._keys[:, :, start:end], self._values[:, :, start:end] = key_states, value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """As `DynamicLayer` does."""
        self._set(self._keys[indices], self._values[indices], self.keys.shape[2])

    def pad(self, left: int, right: int) -> None:
        """Puts zeros before what is filled, and room after it."""
        length = self.keys.shape[2] + left
        self._set(pad(self._keys, (0, 0, left, right)), pad(self._values, (0, 0, left, right)), length)

    def join(self, other: "RoomyLayer") -> None:
        """Takes the rows of another layer of the same room and length."""
        both = torch.cat([self._keys, other._keys]), torch.cat([self._values, other._values])
        self._set(*both, self.keys.shape[2])
