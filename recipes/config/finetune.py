"""The settings of a finetune."""

from dataclasses import dataclass, field
from typing import Any

from recipes.config.choices import (
    Decay,
    Layout,
    OnBadImage,
    Precision,
    Quantization,
    ReduceDtype,
    ResizeStrategy,
    Sampler,
    Sharding,
    Stage,
)
from recipes.config.parsing import check_positive, parse
from recipes.config.presets import read_presets
from recipes.config.trackers import WandbConfig

# What a model is built from.
PARTS = ("vision_backbone", "llm", "projector", "image_resize_strategy", "image_size", "prompt_style")
MAY_CHANGE = (  # settings in which a run may differ from the unfinished one that it continues
    "data.workers", "per_device_batch_size", "gradient_checkpointing", "processes", "sharding", "timeout_minutes",
    "save_every_steps", "keep_last", "keep_every", "resume", "run_root", "trackers", "eval_tasks", "eval_root",
    "learning_rate", "projector_learning_rate", "min_learning_rate", "max_grad_norm", "base",
    "wandb.project", "wandb.entity", "wandb.name", "wandb.id",
)  # fmt: skip


@dataclass
class DataConfig:
    """What is trained on."""

    annotations: str = ""  # LLaVA json or jsonl; "miniature:N" generates N questions about drawn scenes
    # instead of annotations, one or several of: LLaVA json, parquet files, a folder of save_to_disk, hf:NAME:SPLIT, tar
    # shards, miniature:N; LOCATION@0.3 is a share of the mixture, LOCATION@20000 a number of rows (docs/data.md)
    sources: list[str] = field(default_factory=list)
    # read the rows of one source, hf:NAME:SPLIT or parquet, as they come: it is not downloaded or indexed first; needs
    # --max_steps and --data.sampler shuffle
    streaming: bool = False
    layout: Layout = "auto"  # layout of the rows of sources; auto: told by their columns
    image_root: str | None = None  # folder that image paths are relative to; null: the folder of the data
    # single questions, LLaVA json or another source, answered before and after training; the miniature world brings its
    # own
    held_out: str | None = None
    held_out_limit: int = 500  # maximum number of held-out questions
    # "error" stops at a missing or corrupt image; "skip" drops its row and counts it in the metrics
    on_bad_image: OnBadImage = "error"
    exif_rotation: bool = False  # rotate images by their EXIF tag (the paper does not)
    # "split-modality": text-only rows in batches of their own, lengths balanced over processes; "shuffle": random order
    sampler: Sampler = "split-modality"
    packing: bool = False  # concatenate the rows of a micro-batch instead of padding them; same loss, less work
    workers: int = 4  # processes that decode images


@dataclass
class LoraConfig:
    """Low-rank adapters, used by stage "lora"."""

    rank: int = 16  # rank of the update of each weight matrix
    alpha: int = 32  # the update is scaled by alpha / rank
    dropout: float = 0.0  # dropout probability on the adapters' input
    targets: list[str] = field(default_factory=list)  # names of the LLM layers to adapt; empty: all linear layers


@dataclass
class FinetuneConfig:
    """Finetunes a vision-language model: vision backbone, projector and LLM. Defaults are the paper's.

    Without --config_path and --model it runs recipes/configs/miniature.yaml, a complete finetune on a laptop.
    """

    model: str | None = None  # preset for the settings below, such as aligned-clip-vit-l-336px+7b
    # registered id, timm:<id>, or a run of align (list: prismatic backbones list)
    vision_backbone: str = "clip-vit-l-336px"
    llm: str = "llama2-7b-pure"  # registered id, Hugging Face id or local folder (list: prismatic llms)
    projector: str = "gelu-mlp"  # name of the projector (list: prismatic projectors)
    # how images become square: stretch (resize-naive), crop (resize-crop) or pad (letterbox)
    image_resize_strategy: ResizeStrategy = "resize-naive"
    image_size: int | None = None  # side of the input image in pixels; null: the backbone's own
    # chat template: a name, FILE.jinja, or auto: the LLM's own, else "pure" (see docs/llms.md)
    prompt_style: str = "auto"
    # run or save_pretrained folder to load initial weights from, such as a run of stage align
    init_from: str | None = None
    # current path of the base LLM, if --init_from is a LoRA run whose LLM has moved; PART=PATH,... for other parts
    base: str | None = None

    data: DataConfig = field(default_factory=DataConfig)
    # what is trained: align = projector; finetune = projector and LLM; full-finetune = vision backbone too; lora =
    # projector and LLM adapters
    stage: Stage = "finetune"
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: Quantization | None = None  # load the frozen LLM in 4 or 8 bits (stages lora, align)

    epochs: int = 2  # passes over the data
    max_steps: int | None = None  # total number of optimizer steps; overrides --epochs
    global_batch_size: int = 128  # examples per optimizer step, over all processes
    per_device_batch_size: int = 16  # examples per micro-batch on each process
    max_length: int = 2048  # maximum number of text tokens per example; longer ones are truncated
    learning_rate: float = 2e-5  # peak learning rate
    # peak learning rate of the projector, which starts from nothing; null: --learning_rate
    projector_learning_rate: float | None = None
    min_learning_rate: float = 0.0  # learning rate at the end of the cosine schedule
    warmup_ratio: float = 0.03  # fraction of the steps used for linear warm-up
    weight_decay: float = 0.1  # AdamW weight decay
    # which parameters decay: "matrices", or "as-reference": none, as in the reference code on several GPUs
    decay: Decay = "matrices"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW beta1,beta2
    max_grad_norm: float = 1.0  # global norm to which gradients are clipped
    precision: Precision = "bf16"  # bf16: compute in bfloat16 with float32 weights; fp32: compute in float32
    gradient_checkpointing: bool = True  # recompute activations in the backward pass: less memory, a third slower
    seed: int = 7  # random seed for new weights and the order of the data

    processes: int | None = None  # expected number of processes, any other is an error; null: any number
    # how parameters are split over processes: full; grad-op (less traffic); hybrid (full within a node); none (DDP)
    sharding: Sharding = "full"
    reduce_dtype: ReduceDtype = "float32"  # dtype in which sharded gradients are summed over processes
    timeout_minutes: float = 30.0  # a process that waits longer than this for the others ends the run with an error
    save_every_steps: int | None = 500  # steps between the checkpoints from which an interrupted run resumes
    keep_last: int = 2  # number of newest step checkpoints to keep
    keep_every: int | None = None  # also keep every N-th step
    # auto: resume the unfinished run of this --run_id; never: start over; or a step checkpoint or another run to resume
    resume: str = "auto"

    eval_tasks: list[str] = field(default_factory=list)  # benchmarks to evaluate at the end (list: prismatic tasks)
    eval_root: str = ""  # folder with their data sets; "miniature:N" generates nine benchmarks of N drawn scenes each

    run_root: str = "runs"  # parent folder of all runs
    run_id: str | None = None  # name of this run's folder; null: model, stage and time
    # accelerate's trackers to use besides metrics.jsonl: tensorboard, wandb, trackio, ...
    trackers: list[str] = field(default_factory=list)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    # modules to import first, which register your backbones, projectors, losses, prompt styles or tasks
    plugins: list[str] = field(default_factory=list)


def parse_finetune(argv: list[str]) -> FinetuneConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    return parse(FinetuneConfig, argv, default="miniature.yaml", named="models.yaml", check=_check)


def parts_of(config: FinetuneConfig) -> dict[str, Any]:
    """What the model is built from: an earlier run, or the settings of `PARTS`."""
    return {name: getattr(config, name) for name in (("init_from", "prompt_style") if config.init_from else PARTS)}


def named_models() -> dict[str, dict[str, Any]]:
    """The named model configurations of `recipes/configs/models.yaml`: id to settings."""
    return read_presets("models.yaml")


def check_quantize(config: FinetuneConfig) -> None:
    """Raises ValueError if an LLM that is trained is to be quantised."""
    if config.quantize and config.stage not in ("lora", "align"):
        raise ValueError(f"--quantize {config.quantize} needs a frozen LLM: --stage lora or align, not {config.stage}")


def check_streaming(config: FinetuneConfig) -> None:
    """Raises ValueError if the settings ask of a stream what only numbered rows can give."""
    if config.data.annotations or len(config.data.sources) != 1:
        given = config.data.annotations or ",".join(config.data.sources) or "no --data.sources"
        raise ValueError(
            f"--data.streaming reads one of --data.sources, not {given}: name one hf:NAME:SPLIT or parquet"
        )
    if not config.max_steps:
        raise ValueError("--data.streaming needs --max_steps: a stream has no length of which --epochs could be passes")
    if config.data.sampler != "shuffle":
        raise ValueError(
            f"--data.streaming knows no lengths, which --data.sampler {config.data.sampler} needs: set --data.sampler "
            "shuffle"
        )


def _check(config: FinetuneConfig) -> None:
    positive = ("epochs", "max_length", "learning_rate", "projector_learning_rate", "data.held_out_limit")
    check_positive(config, (*positive, "timeout_minutes", "keep_last"))
    for name in ("processes", "save_every_steps", "keep_every"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}: expected at least 1, or null")
    check_quantize(config)
    if config.data.streaming:
        check_streaming(config)
    if config.data.annotations and config.data.sources:
        raise ValueError("--data.annotations and --data.sources are both set: list the annotations among the sources")
    if not config.data.annotations and not config.data.sources:
        raise ValueError(
            "no data: give --data.annotations a LLaVA json file, or miniature:10000 for drawn scenes, or "
            "--data.sources what else there is"
        )
    scenes = config.data.annotations.partition("miniature:")[2]
    if config.data.annotations.startswith("miniature:") and not scenes.isdecimal():
        raise ValueError(
            f"--data.annotations is {config.data.annotations!r}: expected a number of questions, miniature:10000"
        )
