"""The settings of a plan: those of the finetune, and what it is to run on."""

from dataclasses import dataclass

from recipes.config.finetune import FinetuneConfig, check_quantize
from recipes.config.parsing import check_positive, parse

# Rows, mean text tokens and share of rows without an image of LLaVA-1.5's data: 558k captions for stage align, else the
# mix of 665k, of which 40,688 rows have no image. The tokens are estimates from the size of the files.
CAPTIONS = {"examples": 558_128, "text_length": 30, "text_only": 0.0}
MIX = {"examples": 665_298, "text_length": 300, "text_only": 0.061}
TOKENS_PER_WORD = 4 / 3  # of English, roughly, whatever the tokenizer


@dataclass
class PlanConfig(FinetuneConfig):
    """Estimates what a finetune needs: memory per GPU by part, arithmetic, hours, the largest batch that fits.

    Pass the settings of the finetune (--model, --config_path or single flags) and the hardware it will run on. No GPU,
    weights or network are needed: the step runs on tensors without data. Without --config_path and --model it
    plans recipes/configs/miniature.yaml. Example: python -m prismatic plan --model prism-clip+7b --gpus 8
    """

    gpus: int = 1  # number of GPUs, one process each; more than 8 means nodes of 8
    gpu_memory: float = 80.0  # memory of each GPU in GB (1e9 bytes)
    reserve: float = 0.08  # fraction of GPU memory reserved for the driver, communication and fragmentation
    tflops: float = 312.0  # dense peak TFLOP/s of a GPU in the run's precision; bf16: A100 312, H100 989
    # fraction of that peak that is reached (model FLOP/s utilisation); measured values are in a run's metrics.jsonl
    mfu: float = 0.4
    supervised: float = 1.0  # fraction of the text tokens of the longest examples that are answers; 1 is the worst case
    # mean text tokens per example; null: by the words of --data.sources; without, 300 as in LLaVA-1.5, or 30 for align
    text_length: int | None = None
    # fraction of examples without an image; null: that of --data.sources; without, LLaVA-1.5's 0.061, or 0 for align
    text_only: float | None = None
    # number of examples; null: those of --data.sources; without, LLaVA-1.5's 665298, or 558128 for stage align
    examples: int | None = None
    json: str | None = None  # JSON file to write the plan to as well


def parse_plan(argv: list[str]) -> PlanConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    return parse(PlanConfig, argv, default="miniature.yaml", named="models.yaml", check=_check)


def data_of(config: PlanConfig) -> dict[str, int | float]:
    """What is known of the data, `examples`, `text_length`, `text_only`: as given, of --data.sources, or LLaVA-1.5's.

    Raises:
        ValueError: there are sources, and they cannot be read.
    """
    known = _counted(config) if config.data.sources else CAPTIONS if config.stage == "align" else MIX
    given = {name: getattr(config, name) for name in known}
    return {name: known[name] if value is None else value for name, value in given.items()}


def _counted(config: PlanConfig) -> dict[str, int | float]:
    from prismatic.data.mixture import open_sources

    data = config.data
    source = open_sources(data.sources, data.layout, data.image_root, seed=config.seed)
    tokens = max(1, round(TOKENS_PER_WORD * source.word_counts.mean()))
    return {"examples": len(source), "text_length": tokens, "text_only": float((source.image_counts == 0).mean())}


def _check(config: PlanConfig) -> None:
    positive = ["epochs", "gpus", "gpu_memory", "tflops", "global_batch_size", "per_device_batch_size"]
    positive += [name for name in ("text_length", "examples") if getattr(config, name) is not None]
    check_positive(config, positive)
    check_quantize(config)
    if config.data.streaming:
        raise ValueError(
            "--data.streaming: a stream cannot be counted; leave it out, and give --examples, --text_length and "
            "--text_only instead of --data.sources"
        )
    if config.max_length < 2:
        raise ValueError(f"--max_length is {config.max_length}: expected at least 2 text tokens")
    for name, low, high in (("mfu", 0, 1), ("supervised", 0, 1), ("reserve", -1, 0.99), ("text_only", -1, 1)):
        value = getattr(config, name)
        if value is not None and not low < value <= high or name in ("reserve", "text_only") and (value or 0) < 0:
            shown = "0 or more" if low < 0 else "more than 0"
            raise ValueError(f"--{name} is {value}: expected {shown} and at most {high}")
