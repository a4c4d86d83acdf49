"""One probe: a head trained on a backbone's tokens, measured after every epoch."""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from eval.probing.evaluate import HEADLINES, describe, evaluate, scores_of, write_classes
from eval.probing.features import Probe, Split
from eval.probing.labels import unpack
from eval.probing.metrics import jsonable, probe_loss
from eval.probing.plots import draw_classes, draw_samples, sample_rows
from prismatic.checkpoints.epoch import load_state, newest_state, save_state
from prismatic.data import batching
from prismatic.data.samplers import shuffle_indices, training_length
from prismatic.training import loop, optim
from prismatic.training.losses import Objective
from prismatic.training.tracking import open_metrics
from vision_backbones.backbone_files import write_tensors

STRIPES = 4  # most classes of a patch in the picture
COUNTS = "counts.safetensors"  # of the best epoch so far, beside the state


def train(
    config,
    accelerator: Accelerator,
    probe: Probe,
    splits: dict[str, Split],
    plan: Sequence[Sequence[int]],
    kind: str,
    folder: Path,
    matmul_peak: float,
) -> dict:
    """Trains a probe and writes `metrics.jsonl`, `classes.csv`, `classes.png` and `samples.png` into `folder`.

    A probe that was killed resumes from its last whole epoch, of which `folder/checkpoints` holds the state.

    Args:
        config: A `ProbeConfig`.
        accelerator: Provides device and precision.
        probe: Its head is trained, and its backbone if it is finetuned.
        splits: `train` and `val`.
        plan: Batches of the validation rows.
        kind: Of the labels.
        folder: Is there.
        matmul_peak: FLOP/s, to report MFU.

    Returns:
        What results.json says of a probe: `best`, the epoch with the highest macro recall (chosen on the validation
        images, as in the paper, and so a little too good), `last`, the last one, and every epoch's scores in short.
    """
    started, classes = time.perf_counter(), splits["train"].examples.dataset.classes
    trained = [p for p in probe.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    per_epoch = -(-len(splits["train"]) // config.batch_size)
    steps, passes = training_length(config.epochs, config.max_steps, per_epoch)
    epochs, best, last, done = [], {}, {}, 0
    parts = {"probe": probe if probe.finetune else probe.head}
    if state := newest_state(folder, accelerator.print):
        progress = load_state(state, parts, optimizer)
        epochs, done = progress["epochs"], progress["steps"]
        best = progress["best"] | load_file(state / COUNTS)
        accelerator.print(f"continues from {state}, after epoch {len(epochs)} of {passes}\n")

    def batches(epoch: int):
        rows = shuffle_indices(len(splits["train"]), config.batch_size, config.seed, epoch)
        return splits["train"].batches(list(batching.batched(rows, config.batch_size)), kind)

    def save(steps_done: int) -> None:
        short = {name: best[name] for name in best if name not in ("counts", "reliability")}
        progress = {"steps": steps_done, "epochs": epochs, "best": short}
        counts = {"counts": best["counts"]}
        save_state(folder, parts, optimizer, progress, lambda tmp_path: write_tensors(tmp_path / COUNTS, counts, {}))

    def loss_sum(model: Probe, batch: dict) -> torch.Tensor:
        labels = unpack(batch["labels"], len(classes), kind)
        return probe_loss(model(batch), labels, kind) * len(labels)

    def images(batch: dict) -> tuple[int, int]:
        return len(batch["labels"]), len(batch["labels"])

    def end_of_epoch(epoch: int, steps_done: int) -> None:
        nonlocal best, last
        last = evaluate(probe, splits["val"], plan, kind, accelerator, reliability=steps_done == steps)
        if not math.isfinite(last["loss"]):
            raise FloatingPointError(
                f"the validation loss is {last['loss']} after step {steps_done}: choose another --run_id and a "
                "lower --learning_rate"
            )
        last["epoch"], recall = epoch + 1, float(scores_of(last, kind)["macro_recall"])
        if not best or recall > best["macro_recall"]:
            best = last | {"macro_recall": recall}
        row = {"epoch": epoch + 1, "step": steps_done, "validation_loss": last["loss"]}
        epochs.append(row | jsonable(scores_of(last, kind)))
        log.write(epochs[-1])
        shown = ", ".join(f"{name.replace('_', ' ')} {epochs[-1][name] or 0:.4f}" for name in HEADLINES)
        accelerator.print(f"\nepoch {epoch + 1}: loss {last['loss']:.4f}, {shown}")
        if steps_done < steps:
            save(steps_done)

    with open_metrics(folder / "metrics.jsonl", done) as log:
        loop.fit(
            accelerator,
            probe,
            optimizer,
            Objective(loss_sum, lambda batch: len(batch["labels"]), images, "images"),
            epochs=((epoch, batches(epoch)) for epoch in range(len(epochs), passes)),
            total_steps=steps,
            accumulation=1,
            rate_at=partial(
                optim.cosine_rate,
                peak=config.learning_rate,
                minimum=config.min_learning_rate,
                total_steps=steps,
                warmup_steps=config.warmup_steps,
            ),
            max_grad_norm=float("inf"),  # the paper's gradients are not clipped
            log=log.write,
            end_of_epoch=end_of_epoch,
            done_steps=done,
            seed=config.seed,
            matmul_peak=matmul_peak,
        )
    seconds = time.perf_counter() - started
    write_classes(folder / "classes.csv", classes, best, last, kind)
    draw(probe, splits["val"], kind, accelerator, last, folder)
    described = {"best": describe(best, kind, config.seed), "last": describe(last, kind, config.seed)}
    return described | {"epochs": epochs, "steps": steps, "seconds": seconds}


@torch.no_grad()
def draw(probe: Probe, split: Split, kind: str, accelerator: Accelerator, last: dict, folder: Path) -> None:
    """Writes the pictures of the last epoch."""
    examples, spec = split.examples, probe.backbone.spec
    classes, rows = len(examples.dataset.classes), sample_rows(len(split))
    (batch,) = split.batches([rows], kind)
    probe.eval()
    with accelerator.autocast():
        logits = probe(batching.to_device(batch, accelerator.device)).cpu()
    labels = unpack(batch["labels"], classes, kind)
    if kind == "majority":
        one_hot = torch.eye(classes, dtype=torch.bool)
        truth, predicted = one_hot[labels].flatten(1, -2), one_hot[logits.argmax(-1)]
    else:
        truth = labels.bool().reshape(logits.shape)
        likely = logits >= logits.topk(min(classes, STRIPES)).values[..., -1:]
        predicted = (logits > 0) & (likely | torch.tensor(kind == "global-union"))
    shape = (len(rows), classes) if kind == "global-union" else (len(rows), *probe.backbone.grid, classes)
    images = [np.asarray(examples.square(row)[0]) for row in rows]
    title = f"{spec.id}, {kind} labels, last epoch"
    sheets = [part.reshape(shape).numpy() for part in (truth, predicted)]
    names = examples.dataset.classes
    draw_samples(folder / "samples.png", images, *sheets, examples.patch, names, title)
    scores, there = scores_of(last, kind), last["counts"][:, 2].sum(0).numpy()
    recall, precision = scores["class_recall"], scores["class_precision"]
    draw_classes(folder / "classes.png", names, recall, precision, there, last["reliability"].numpy(), title)
