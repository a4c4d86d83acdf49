"""`prismatic plan`: what a finetune needs, on the screen and as json."""

import dataclasses
import sys
import warnings
from pathlib import Path

from vision_backbones.files import write_json


def main(argv: list[str]) -> None:
    """Runs the command line; errors are one line on stderr and exit status 2."""
    from recipes.config.plan import parse_plan

    config = parse_plan(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers, of its own arguments
            plan = make_plan(config)
        if config.json:
            write_json(Path(config.json), as_dict(plan))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(describe(config, plan))


def make_plan(config):
    """The `prismatic.planning.memory.Plan` of a `recipes.config.plan.PlanConfig`."""
    from prismatic.models.build import meta_config
    from prismatic.planning.memory import plan_finetune
    from prismatic.text.speech import template_of
    from recipes.config.finetune import PARTS
    from recipes.config.plan import data_of
    from vision_backbones import import_plugins

    import_plugins(config.plugins)
    template_of(config.prompt_style)
    same = ("stage", "precision", "gradient_checkpointing", "reduce_dtype", "gpus", "global_batch_size",
            "per_device_batch_size", "max_length", "supervised", "epochs", "max_steps",
            "quantize")  # fmt: skip
    return plan_finetune(
        meta_config(**{name: getattr(config, name) for name in PARTS if name != "prompt_style"}),
        **{name: getattr(config, name) for name in same},
        **data_of(config),
        lora=vars(config.lora),
        sharding_mode=config.sharding,
        available=int(config.gpu_memory * 1e9 * (1 - config.reserve)),
        flops_per_second=config.mfu * config.tflops * 1e12,
    )


def as_dict(plan) -> dict:
    """The plan as json holds it: its fields in bytes, FLOPs and hours, its peak and whether it fits."""
    return dataclasses.asdict(plan) | {"peak": plan.peak, "fits": plan.fits}


def describe(config, plan) -> str:
    """The tables of a plan; the last line says whether it fits."""
    from prismatic.training.sharding import shards
    from vision_backbones.table import table

    sums = [sum(row[i] for row in plan.parameters) for i in (1, 2)]
    sharding = f"sharding {config.sharding}" if shards(config.sharding, config.gpus) else "nothing sharded"
    title = (
        f"{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}, {config.precision}, "
        f"{config.gpus} GPU{'s' if config.gpus > 1 else ''}, {sharding}"
    )
    memory = [(part, f"{size / 1e9:9.2f}") for part, size in plan.memory.items()]
    memory.append(("peak", f"{plan.peak / 1e9:9.2f}"))
    seconds = plan.hours * 3600 / plan.steps
    run = [
        ("micro-batch", f"{plan.per_device_batch_size} examples on each GPU, accumulated {plan.accumulation}x a step"),
        ("tokens of a mean example", f"{plan.tokens:,} with its image"),
        ("arithmetic of a step", f"{plan.flops / 1e15:.3g} PFLOP, all GPUs together"),
        ("a step", f"{seconds:.3g} s at {config.mfu:.0%} of {config.tflops:g} TFLOP/s a GPU"),
        ("passes over the data", f"{plan.passes:.3g}"),
        ("the run", f"{plan.steps:,} steps, {plan.hours:.3g} hours, {plan.hours * config.gpus:.3g} GPU hours"),
    ]
    return "\n\n".join(
        [
            title,
            table([*plan.parameters, ("all", *sums)], ("part", "trained", "frozen")),
            table(memory, ("at the peak, on each GPU", "       GB")),
            table(run, ("the run", "estimate")),
            verdict(config, plan),
        ]
    )


def verdict(config, plan) -> str:
    """One line: whether it fits, and the largest batch that does."""
    share = config.global_batch_size // config.gpus
    numbers = f"{plan.peak / 1e9:.1f} of {plan.available / 1e9:.1f} GB"
    head = f"fits: {numbers}" if plan.fits else f"does not fit: {numbers}"
    if not plan.largest_batch:
        remedy = "not even 1 example a GPU does: more GPUs, --sharding full, --stage lora or a smaller model"
        return f"{head}; {remedy}"
    whole = ", all of a GPU's share of a step" if plan.largest_batch == share else ""
    return f"{head}; the largest --per_device_batch_size that fits is {plan.largest_batch}{whole}"


if __name__ == "__main__":
    main(sys.argv[1:])
