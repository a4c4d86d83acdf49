"""The settings of recipes/probe.py."""

import os
from dataclasses import dataclass, field

from recipes.config.choices import FeatureCache, Precision
from recipes.config.parsing import check_positive, parse


@dataclass
class ProbeConfig:
    """Patch probing: what frozen vision backbones know about what is where. Defaults are the paper's.

    With neither --dataset nor --data_root nor --config_path it runs recipes/configs/probe-miniature.yaml, a complete
    comparison on a laptop.
    """

    backbone: list[str] = field(default_factory=lambda: ["clip-vit-b"])  # ids, "timm:<timm id>", runs of align: a,b
    dataset: str = "coco"  # coco (183 classes), coco-things (92), ade20k (151) or miniature (17)
    data_root: str = ""  # folder that holds images/ and annotations/, or miniature:TRAIN:VAL to draw scenes
    partial: bool = False  # accept another number of images than the data set has
    labels: list[str] = field(default_factory=lambda: ["union"])  # union, majority or global-union; several: a,b
    head: str = "transformer"  # linear, mlp, transformer, transformer-cls (sees prefix tokens only) or ...-separate
    skip_blocks: int = 0  # blocks of the backbone left out at the end
    full_finetune: bool = False  # train the backbone too; needs --cache off
    # where features are kept, which are computed once; off computes them in every epoch
    cache: FeatureCache = "memory"
    epochs: int = 5  # passes over the training images
    max_steps: int | None = None  # optimizer steps to stop after, through as many epochs as that takes
    batch_size: int = 32  # images an optimizer step
    learning_rate: float = 1e-3  # peak
    min_learning_rate: float = 1e-4  # where the cosine ends
    warmup_steps: int = 500  # linear warm-up, in optimizer steps
    weight_decay: float = 0.01  # AdamW, of every parameter
    precision: Precision = "bf16"  # "bf16" computes in bfloat16 with float32 weights, "fp32" does not
    seed: int = 0  # of new weights and of the order of the images
    workers: int = 4  # processes that decode images
    run_root: str = "runs"  # folder of all runs
    run_id: str | None = None  # folder of this run; backbone and time if null
    plugins: list[str] = field(default_factory=list)  # modules that register backbones of your own


def parse_probe(argv: list[str]) -> ProbeConfig:
    """The configuration of a command line of recipes/probe.py. Errors are one line on stderr and exit status 2."""
    if any(part.split("=")[0] in ("--dataset", "--data_root") for part in argv):
        argv = ["--config_path", os.devnull, *argv]  # the defaults; a later --config_path goes before it
    return parse(ProbeConfig, argv, default="probe-miniature.yaml", check=check_probe)


def check_probe(config: ProbeConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    check_positive(config, ("epochs", "learning_rate", "batch_size"))
    for name, least in (("warmup_steps", 0), ("workers", 0), ("skip_blocks", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"--{name} is {getattr(config, name)}: expected {least} or more")
    for name in ("backbone", "labels"):
        given = getattr(config, name)
        if not given or len(set(given)) < len(given):
            raise ValueError(f"--{name} is {','.join(given) or 'empty'}: expected one or several different ones")
    if config.full_finetune and config.cache != "off":
        raise ValueError("a backbone that is finetuned gives other features every step: add --cache off")
    if not config.data_root:
        raise ValueError(
            f"no data: give --data_root the folder of {config.dataset} that holds images/ and annotations/, or "
            "--dataset miniature --data_root miniature:4000:500 for drawn scenes"
        )
