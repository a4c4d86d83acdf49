"""Makes the weights of the `miniature` backbone: a tiny ViT taught with image-level labels only.

`python -m prismatic.miniature.make_vit` writes `vision_backbones/assets/miniature.safetensors` (20-30 minutes on two
cores). The ViT sees which shape-colour classes a picture holds, never where they are: 500 steps on single objects
(softmax), which breaks the long plateau of learning from scratch, then multi-object scenes (binary cross-entropy, one
logit a class, positives weighted). Only the class token is read, as in CLIP and ImageNet models.
"""

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from prismatic.flops import flop_counter
from prismatic.miniature.making import check_settings, read_settings
from prismatic.miniature.scenes import CLASSES, scene
from vision_backbones import get_spec
from vision_backbones.backbone_files import save_backbone

FRESH_WORLD = 987_654  # whose scenes tell how good the weights are


@dataclass
class Config:
    """Settings of the pretraining."""

    out: Path = Path("vision_backbones/assets/miniature.safetensors")  # where the weights go
    single_steps: int = 500  # optimizer steps on scenes of one object
    steps: int = 2500  # optimizer steps on scenes of one to four objects
    batch_size: int = 128  # scenes a step, all fresh
    learning_rate: float = 0.01  # peak of Muon, for the matrices of the blocks, after 100 steps of warm-up; cosine to 0
    other_rate: float = 1e-3  # peak of AdamW, for everything else
    weight_decay: float = 0.05  # of both
    positive_weight: float = 4.0  # of present classes in the binary cross-entropy
    seed: int = 0  # of the weights and of the scenes


def world(seed: int, max_objects: int) -> int:
    """The world whose scenes are drawn for a seed, of single objects or of several."""
    return seed + 1000 * (max_objects > 1) + 1


def batch_of(seed: int, start: int, size: int, max_objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised pixels `[B, 3, H, W]` and present classes `[B, len(CLASSES)]` of `size` consecutive scenes."""
    drawn = [scene(seed, start + i, max_objects=max_objects) for i in range(size)]
    pixels = torch.from_numpy(np.stack([s.image for s in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    present = torch.zeros(size, len(CLASSES))
    for row, s in enumerate(drawn):
        for thing in s.things:
            present[row, CLASSES.index(thing.name)] = 1
    return pixels, present


@torch.inference_mode()
def image_level_recall(model: torch.nn.Module, seed: int, count: int = 2048) -> tuple[float, float]:
    """Macro recall and precision over the classes, logit > 0, on `count` fresh scenes."""
    pixels, present = batch_of(seed, 0, count, max_objects=4)
    found = torch.cat([model(p) > 0 for p in pixels.split(256)]).float()
    hits = (found * present).sum(0)
    return (hits / present.sum(0)).mean().item(), (hits / found.sum(0).clamp(min=1)).mean().item()


def main(config: Config) -> None:
    """Trains and writes the weights; prints the image-level recall as it goes."""
    spec = get_spec("miniature")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = timm.create_model(spec.arch, pretrained=False, **spec.arch_kwargs, num_classes=len(CLASSES))
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = (
        torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.other_rate, weight_decay=config.weight_decay),
    )
    started, counter = time.perf_counter(), flop_counter()
    for phase, steps in (("single", config.single_steps), ("multi", config.steps)):
        schedules = [LambdaLR(optimizer, partial(warm_cosine, steps=steps)) for optimizer in optimizers]
        progress = tqdm(range(steps), desc=phase)
        for step in progress:
            most = 1 if phase == "single" else 4
            pixels, present = batch_of(world(config.seed, most), step * config.batch_size, config.batch_size, most)
            if not counter.get_total_flops():  # the first step counts for all
                with counter:
                    model(pixels).mean().backward()
            logits = model(pixels)
            if phase == "single":
                loss = F.cross_entropy(logits, present.argmax(1))
            else:
                weight = torch.tensor(config.positive_weight)
                loss = F.binary_cross_entropy_with_logits(logits, present, pos_weight=weight)
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepped in (*optimizers, *schedules):
                stepped.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
            if phase == "multi" and (step + 1) % 500 == 0:
                recall, precision = image_level_recall(model.eval(), seed=FRESH_WORLD)
                model.train()
                tqdm.write(f"step {step + 1}: image-level recall {recall:.3f}, precision {precision:.3f}")
        print(f"{phase}: last loss {loss.item():.4f}")

    recall, precision = image_level_recall(model.eval(), seed=FRESH_WORLD)
    made = {"recall": recall, "precision": precision, "seconds": time.perf_counter() - started}
    made |= {"flops": counter.get_total_flops() * (config.single_steps + config.steps)}
    metadata = {"made_by": "python -m prismatic.miniature.make_vit", "config": str(config)}
    metadata["image_level"] = json.dumps(made)
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("head.")}
    save_backbone(config.out, state, spec, **metadata)
    print(f"image-level recall {recall:.3f}, precision {precision:.3f}; wrote {config.out}")


def warm_cosine(step: int, steps: int) -> float:
    """Share of the peak rate: linear up in 100 steps, under a cosine to 0."""
    return min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


if __name__ == "__main__":
    main(read_settings(Config, check_settings))
