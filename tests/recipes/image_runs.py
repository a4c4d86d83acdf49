"""Tiny runs of the image recipes, and how tests look into them and interrupt them."""

import copy
import json

import jsonlines
import torch
from safetensors.torch import load_file

from prismatic.checkpoints.epoch import STATE_FILE, newest_state
from recipes import align
from recipes.config.images import parse_align

SMALL = ["--data.train", "miniature:12", "--data.validation", "miniature:7:4", "--data.workers", "0",
         "--global_batch_size", "4", "--per_device_batch_size", "4", "--epochs", "2"]  # fmt: skip


def run_align(root, id, *arguments):
    """Summary of a small alignment in `root/id`."""
    return align.main(parse_align([*SMALL, "--run_root", str(root), "--run_id", id, *arguments]))


def metrics(run, *, timed=True):
    """Rows of metrics.jsonl, without what depends on the machine's speed unless `timed`."""
    speed = () if timed else ("seconds", "data_seconds", "images_per_second", "mfu", "memory_gb")
    with jsonlines.open(run / "metrics.jsonl") as reader:
        return [{key: value for key, value in row.items() if key not in speed} for row in reader]


def validation(run):
    """The validation losses of a run: before it, and after every epoch."""
    return [row["validation_loss"] for row in metrics(run) if "validation_loss" in row]


def state(run, part=""):
    """Tensors of the run's state; of one part (`model`, `ema`, `optimizer`) under their own names."""
    tensors = load_file(newest_state(run) / STATE_FILE)
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}


def exported(run, checkpoint):
    """All exported weights of a checkpoint, by their name in the student (with the final norm, without its heads)."""
    folder = run / "checkpoints" / checkpoint
    encoder = {f"encoder.{k}": v for k, v in load_file(folder / "backbone.safetensors").items()}
    return encoder | load_file(folder / "backbone.decoder.safetensors")


def same(one, two):
    """Whether two dicts of tensors are bitwise equal."""
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def copied(model):
    """The model's weights now."""
    return copy.deepcopy(model.state_dict())


def interrupt(patch, step):
    """Makes the optimizer step of that number, counted over all runs from now, raise KeyboardInterrupt."""
    taken, real = [], torch.optim.AdamW.step

    def counted(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    patch.setattr(torch.optim.AdamW, "step", counted)


def read_summary(run):
    """The stored summary."""
    return json.loads((run / "summary.json").read_text())
