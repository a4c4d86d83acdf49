"""What was read of images, kept for the next question about them."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from eval.engine import Prefix
from eval.streaming.answering import Answering

KEPT = 2**30  # bytes


class KeptPrefixes:
    """Keys and values of the images that were asked about last."""

    def __init__(self, read: Callable[[list[Answering]], Prefix]):
        """Takes what reads the images of answers."""
        self.read, self.kept = read, OrderedDict()

    def of(self, answers: list[Answering]) -> Prefix:
        """Prefixes of the images of some answers, which all have another key."""
        if missing := [answer for answer in answers if answer.key not in self.kept]:
            prefix = self.read(missing)
            for number, answer in enumerate(missing):
                self.kept[answer.key] = [tuple(x[number : number + 1].clone() for x in both) for both in prefix]
        for answer in answers:
            self.kept.move_to_end(answer.key)
        found = [self.kept[answer.key] for answer in answers]
        while len(self.kept) > 1 and sum(map(_size, self.kept.values())) > KEPT:
            self.kept.popitem(last=False)
        return [tuple(map(torch.cat, zip(*layer, strict=True))) for layer in zip(*found, strict=True)]


def _size(prefix: Prefix) -> int:
    return sum(x.numel() * x.element_size() for both in prefix for x in both)


def digest(images: Sequence[Image.Image]) -> str:
    """Tells images apart by their pixels."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode() + image.tobytes())
    return digest.hexdigest()
