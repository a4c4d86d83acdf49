"""Batches of a split for the probe: decoded every time, or from features of the frozen backbone that are kept."""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from eval.probing.backbone import ProbedBackbone
from eval.probing.data import PatchExamples
from prismatic.data.batching import to_device
from prismatic.training.losses import Batch


class Probe(nn.Module):
    """Logits `[B, N, C]` of a batch of `Split.batches`: a head on a backbone, which is frozen unless it is finetuned.

    Args:
        backbone: Returns tokens; used where the batch holds pixels.
        head: Takes them.
        finetune: Train the backbone too.
        dtype: Of frozen features.
    """

    def __init__(self, backbone: ProbedBackbone, head: nn.Module, *, finetune: bool, dtype: torch.dtype):
        super().__init__()
        self.backbone, self.head, self.finetune, self.dtype = backbone.requires_grad_(finetune), head, finetune, dtype

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the logits, float32."""
        return self.head(self.tokens(batch) if "pixel_values" in batch else batch["features"]).float()

    def tokens(self, batch: Batch) -> torch.Tensor:
        """Returns the backbone's tokens of `pixel_values`."""
        if self.finetune:
            return self.backbone(batch["pixel_values"])
        with torch.no_grad():
            return self.backbone(batch["pixel_values"]).to(self.dtype)

    def train(self, mode: bool = True) -> "Probe":
        """Leaves a frozen backbone in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.finetune)
        return self


class Split:
    """Examples of a split, with or without kept features."""

    def __init__(self, examples: PatchExamples, workers: int):
        """Takes the number of processes that decode."""
        self.examples, self.workers = examples, workers
        self.features: torch.Tensor | None = None
        self.labels: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def batches(self, plan: Sequence[Sequence[int]], kind: str) -> Iterator[Batch]:
        """Batches of the rows of `plan`: packed `labels` of a kind, and `features` where they are kept, else pixels."""
        if self.features is None:
            for batch in self._decoded(plan):
                yield {"pixel_values": batch["pixel_values"], "labels": batch[kind]}
            return
        for rows in plan:
            rows = torch.as_tensor(rows)
            yield {"features": self.features[rows], "labels": self.labels[kind][rows]}

    @torch.no_grad()
    def keep(self, plan: Sequence[Sequence[int]], accelerator: Accelerator, probe: Probe, path: Path | None) -> None:
        """Computes features and labels of every row once.

        Args:
            plan: Batches that hold every row, as large as those of training: sums are then rounded alike.
            accelerator: Provides device and precision.
            probe: Returns the tokens.
            path: File that features are mapped to, which is nameless from then on; None keeps them in memory.
        """
        shape = (len(self), probe.backbone.num_tokens, probe.backbone.embed_dim)
        if path is None:
            features = torch.empty(shape, dtype=probe.dtype)
        else:
            features = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=probe.dtype).view(shape)
            path.unlink()  # it is there as long as it is mapped, and gone when the process is
        bar = tqdm(plan, desc="features", leave=False)
        for rows, batch in zip(bar, self._decoded(plan), strict=True):
            rows = torch.as_tensor(rows)
            with accelerator.autocast():
                features[rows] = probe.tokens(to_device(batch, accelerator.device)).cpu()
            for kind in self.examples.kinds:
                packed = self.labels.setdefault(
                    kind, torch.empty((len(self), *batch[kind].shape[1:]), dtype=torch.uint8)
                )
                packed[rows] = batch[kind]
        self.features = features

    def _decoded(self, plan: Sequence[Sequence[int]]) -> DataLoader:
        return DataLoader(
            self.examples,
            batch_sampler=plan,
            num_workers=min(self.workers, len(plan)),
            pin_memory=torch.accelerator.is_available(),
            generator=torch.Generator(),  # else iterating would draw from the global one
        )


def features_size(splits: Sequence[Split], probe: Probe) -> int:
    """Bytes of the features of some splits."""
    return sum(map(len, splits)) * probe.backbone.num_tokens * probe.backbone.embed_dim * probe.dtype.itemsize


def check_room(size: int, cache: str, folder: Path) -> None:
    """Raises ValueError where features of `size` bytes do not fit."""
    if cache == "disk" and size > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"the features take {size / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB left: choose another --run_root, "
            "or recompute them every epoch with --cache off"
        )
    meminfo = Path("/proc/meminfo")
    if cache == "memory" and meminfo.is_file():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        if size > free:
            raise ValueError(
                f"the features take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB of memory are free: use --cache disk, or "
                "recompute them every epoch with --cache off"
            )
