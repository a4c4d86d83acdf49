"""What a probe gets right on the validation images, and how that is written down."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from eval.probing import metrics
from eval.probing.features import Probe, Split
from eval.probing.labels import unpack
from prismatic.data.batching import to_device
from vision_backbones.files import replacing
from vision_backbones.table import table

HEADLINES = ("macro_recall", "macro_f1_or_0", "micro_recall", "micro_precision", "accuracy")
PER_CLASS = ("recall", "precision", "f1", "accuracy")


@torch.no_grad()
def evaluate(
    probe: Probe, split: Split, plan: Sequence[Sequence[int]], kind: str, accelerator: Accelerator, reliability=False
) -> dict[str, Any]:
    """Returns `loss`, `counts` (see `metrics`) and `places` of an image on `plan`; `reliability` if asked."""
    classes = len(split.examples.dataset.classes)
    probe.eval()
    losses, counts, reliable, places = 0.0, [], 0, 0
    for batch in split.batches(plan, kind):
        batch = to_device(batch, accelerator.device)
        labels = unpack(batch["labels"], classes, kind)
        with accelerator.autocast():
            logits = probe(batch)
        losses += metrics.probe_loss(logits, labels, kind).item() * len(logits)
        counts.append(metrics.count_hits(logits, labels, kind))
        places = logits.shape[1]
        if reliability:
            reliable = reliable + metrics.reliability(logits, labels, kind)
    probe.train()
    joined = torch.cat(counts)
    return {"loss": losses / len(joined), "counts": joined, "places": places, "reliability": reliable}


def scores_of(found: dict[str, Any], kind: str) -> dict[str, np.ndarray]:
    """Scores over all images of what `evaluate` gave."""
    total = found["counts"].sum(0).numpy()
    return metrics.scores(total, len(found["counts"]) * found["places"], kind)


def describe(found: dict[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """What results.json says of an epoch: its number, loss, scores, 95 % intervals over images, scores by size.

    Sizes (shares of the image's patches, upper end included) make no sense of image-level labels and are then absent.
    """
    counts, places = found["counts"], found["places"]
    row = {"epoch": found["epoch"], "loss": found["loss"], "scores": metrics.jsonable(scores_of(found, kind))}
    row["intervals"] = metrics.intervals(counts, places, kind, seed)
    if kind != "global-union":
        sums, cells = metrics.by_size(counts, places)
        sizes = metrics.scores(sums, cells, "union")
        edges = np.linspace(0, 1, metrics.SIZE_BUCKETS + 1).round(6).tolist()
        row["sizes"] = [
            {"above": edges[i], "to": edges[i + 1], "patches": int(sums[i, 2, 0])}
            | metrics.jsonable({name: sizes[f"class_{name}"][i, 0] for name in PER_CLASS})
            for i in range(metrics.SIZE_BUCKETS)
        ]
    return row


def write_classes(path: Path, names: Sequence[str], best: dict, last: dict, kind: str) -> None:
    """Writes a csv with one row a class: how often it is there and is found, its scores, its calibration error.

    Columns say whether they are of the best or of the last epoch; what is not defined is empty.
    """
    columns: dict[str, Sequence] = {"class": range(len(names)), "name": names}
    columns["there"] = last["counts"][:, 2].sum(0).tolist()
    for which, found in (("best", best), ("last", last)):
        columns[f"{which}_found"] = found["counts"][:, 1].sum(0).tolist()
        columns |= {f"{which}_{name}": _blank(scores_of(found, kind)[f"class_{name}"]) for name in PER_CLASS}
    columns["last_calibration_error"] = _blank(metrics.calibration_error(last["reliability"]))
    with replacing(path) as tmp_path, tmp_path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _blank(values: np.ndarray) -> list[str | float]:
    return ["" if np.isnan(value) else float(value) for value in values]


def results_table(results: Sequence[dict]) -> str:
    """The scores of several probes: macro recall of the best and of the last epoch, more of the last."""
    rows = []
    for row in results:
        best, last = row["best"], row["last"]
        low, high = last["intervals"]["macro_recall"] or (float("nan"),) * 2
        shown = [f"{last['scores'][name]:.3f}" if last["scores"][name] is not None else "-" for name in HEADLINES[1:]]
        rows.append(
            (
                row["backbone"],
                row["labels"],
                f"{best['scores']['macro_recall']:.3f} (epoch {best['epoch']})",
                f"{last['scores']['macro_recall']:.3f} [{low:.3f}, {high:.3f}]",
                *shown,
            )
        )
    names = [name.replace("_", " ") for name in HEADLINES[1:]]
    return table(rows, ("backbone", "labels", "best macro recall", "last macro recall [95 %]", *names))
