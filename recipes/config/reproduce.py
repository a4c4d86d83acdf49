"""The settings of recipes/reproduce/__main__.py."""

import os
from dataclasses import dataclass, field

from recipes.config.parsing import CONFIGS, parse

PROJECTORS = ("gelu-mlp", "pretrained-decoder", "truncated", "transformer")


@dataclass
class ReproduceConfig:
    """The paper in miniature: pretrain, align, probe, finetune and evaluate, with controls, seeds and a report.

    Without settings it runs the whole study: three to five hours on two CPU cores, two more where seeds are added.
    `--quick` runs only the first seed, with the bundled vision backbone, a shorter alignment, one projector and no
    ablations (recipes/configs/reproduce-quick.yaml): less than half an hour. After an interruption, rerun the same
    command: finished stages are not repeated, nor are stages that a changed setting does not affect.
    """

    seeds: int = 5  # number of seeds; each repeats everything that is random: weights, order of the data, masks
    # number of seeds to add, once, where the interval over seeds of a planned comparison is wider than 0.08
    more_seeds: int = 2
    # number of seeds, the first ones, that use the bundled vision backbone; the others pretrain their own
    bundled_seeds: int = 1
    ablation_seeds: int = 3  # number of seeds, the first ones, for which the alignment is ablated
    projectors: list[str] = field(default_factory=lambda: list(PROJECTORS))  # projectors of the vision-language models
    jobs: int = 2  # stages to run in parallel; each gets its share of the cores

    # optimizer steps of pretraining on scenes of several objects, after 500 on single objects
    pretrain_steps: int = 1500
    align_scenes: int = 48_000  # number of scenes for each alignment
    ablation_scenes: int = 12_000  # number of scenes for each ablated alignment
    probe_scenes: int = 4800  # number of training scenes for each probe; a sixth as many more are for validation
    finetune_rows: int = 10_000  # number of training questions for each vision-language model, five per scene
    finetune_epochs: int = 2  # passes over the training questions
    eval_scenes: int = 200  # number of scenes in each benchmark

    run_root: str = "runs/reproduce"  # folder of all stages
    out: str = "docs/results"  # folder of the report


def parse_reproduce(argv: list[str]) -> ReproduceConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    if "--quick" in argv:
        argv = ["--config_path", str(CONFIGS / "reproduce-quick.yaml"), *(part for part in argv if part != "--quick")]
    return parse(ReproduceConfig, argv, default=os.devnull, check=check_reproduce)


def check_reproduce(config: ReproduceConfig) -> None:
    """Raises ValueError for values that make no sense."""
    numbers = {name: value for name, value in vars(config).items() if isinstance(value, int)}
    for name, value in numbers.items():
        least = 0 if name in ("more_seeds", "bundled_seeds", "ablation_seeds") else 1
        if value < least:
            raise ValueError(f"--{name} is {value}: expected at least {least}")
    if other := set(config.projectors) - set(PROJECTORS):
        raise ValueError(f"--projectors has {', '.join(sorted(other))}: choose from {', '.join(PROJECTORS)}")
    if "gelu-mlp" not in config.projectors:
        raise ValueError("--projectors lacks gelu-mlp, whose cells the study is about")
    if len(pair := {"pretrained-decoder", "transformer"} & set(config.projectors)) == 1:
        raise ValueError(
            f"--projectors has {pair.pop()} alone: pretrained-decoder and transformer are compared, give both"
        )
