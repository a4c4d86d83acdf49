"""The settings of recipes/probe.py."""

import os
from dataclasses import dataclass, field

from recipes.config.choices import FeatureCache, Precision, ProbeDataset, ProbeHead
from recipes.config.parsing import check_least, check_positive, parse


@dataclass
class ProbeConfig:
    """Patch probing: what the patch features of frozen vision backbones encode. Defaults are the paper's.

    With neither --dataset nor --data_root nor --config_path it runs recipes/configs/probe-miniature.yaml, a complete
    comparison on a laptop.
    """

    # comma-separated registered ids, timm:<id>, or runs of align (list: prismatic backbones list)
    backbone: list[str] = field(default_factory=lambda: ["clip-vit-b"])
    dataset: ProbeDataset = "coco"  # coco (183 classes), coco-things (92), ade20k (151) or miniature (17)
    data_root: str = ""  # folder that holds images/ and annotations/, or miniature:TRAIN:VAL to draw scenes
    partial: bool = False  # accept a number of images that differs from the official one
    labels: list[str] = field(default_factory=lambda: ["union"])  # comma-separated: union, majority, global-union
    # probe head: linear, mlp, transformer, transformer-cls (sees prefix tokens only) or transformer-separate (one query
    # per patch)
    head: ProbeHead = "transformer"
    # hidden units of the mlp (null: 1024), or channels of a transformer's blocks (null: those of the backbone)
    head_width: int | None = None
    head_depth: int | None = None  # hidden layers of the mlp (null: 1), or blocks of a transformer (null: 2)
    image_size: int | None = None  # side of the square input in pixels; null: the backbone's own
    pretrained: bool = True  # false: probe backbones with random weights, as a control
    skip_blocks: int = 0  # number of the backbone's last blocks to leave out
    full_finetune: bool = False  # train the backbone too; needs --cache off
    cache: FeatureCache = "memory"  # where features, computed once, are kept; off: recompute them in every epoch
    epochs: int = 5  # passes over the training images
    max_steps: int | None = None  # total number of optimizer steps; overrides --epochs
    batch_size: int = 32  # images per optimizer step
    learning_rate: float = 1e-3  # peak learning rate
    min_learning_rate: float = 1e-4  # learning rate at the end of the cosine schedule
    warmup_steps: int = 500  # optimizer steps of linear warm-up
    weight_decay: float = 0.01  # AdamW weight decay, on every parameter
    precision: Precision = "bf16"  # bf16: compute in bfloat16 with float32 weights; fp32: compute in float32
    seed: int = 0  # random seed for new weights and the order of the images
    workers: int = 4  # processes that decode images
    run_root: str = "runs"  # parent folder of all runs
    run_id: str | None = None  # name of this run's folder; null: backbone and time
    # modules to import first, which register your backbones, projectors, losses, prompt styles or tasks
    plugins: list[str] = field(default_factory=list)


def parse_probe(argv: list[str]) -> ProbeConfig:
    """The configuration of a command line of recipes/probe.py. Errors are one line on stderr and exit status 2."""
    if any(part.split("=")[0] in ("--dataset", "--data_root") for part in argv):
        argv = ["--config_path", os.devnull, *argv]  # the defaults; a later --config_path goes before it
    return parse(ProbeConfig, argv, default="probe-miniature.yaml", check=check_probe)


def check_probe(config: ProbeConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    check_positive(config, ("epochs", "learning_rate", "batch_size"))
    check_least(config, 0, "warmup_steps", "workers", "skip_blocks")
    check_least(config, 1, "head_width", "head_depth", "image_size")
    for name in ("backbone", "labels"):
        given = getattr(config, name)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"--{name} is {','.join(given) or 'empty'}: expected one or more distinct values")
    if config.full_finetune and config.cache != "off":
        raise ValueError("features change while the backbone is trained: add --cache off")
    if not config.data_root:
        raise ValueError(
            f"no data: give --data_root the folder of {config.dataset} that holds images/ and annotations/, or "
            "--dataset miniature --data_root miniature:4000:500 for drawn scenes"
        )
