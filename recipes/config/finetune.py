"""The settings of a finetune."""

from dataclasses import dataclass, field
from typing import Any

from recipes.config.choices import Decay, OnBadImage, Precision, Quantization, ReduceDtype, Sampler, Sharding, Stage
from recipes.config.parsing import check_positive, parse
from recipes.config.presets import read_presets

# What a model is built from.
PARTS = ("vision_backbone", "llm", "projector", "image_resize_strategy", "image_size", "prompt_style")
MAY_CHANGE = (  # settings in which a run may differ from the unfinished one that it continues
    "data.workers", "per_device_batch_size", "gradient_checkpointing", "processes", "sharding", "timeout_minutes",
    "save_every_steps", "keep_last", "keep_every", "resume", "run_root", "trackers", "eval_tasks", "eval_root",
    "learning_rate", "min_learning_rate", "max_grad_norm", "base",
)  # fmt: skip


@dataclass
class DataConfig:
    """What is trained on."""

    annotations: str = ""  # LLaVA json or jsonl; "miniature:10000" asks so many questions about drawn scenes
    image_root: str | None = None  # folder that image paths are relative to; the annotations' own folder if null
    # LLaVA json of single questions, answered before and after; the miniature world has one
    held_out: str | None = None
    held_out_limit: int = 500  # how many of them
    on_bad_image: OnBadImage = (
        "error"  # "error" stops at a missing or corrupt image, "skip" leaves its row out and counts
    )
    exif_rotation: bool = False  # turn images as their EXIF tag says (the paper does not)
    # "split-modality" groups by length and never mixes text-only rows in
    sampler: Sampler = "split-modality"
    packing: bool = False  # concatenate the rows of a micro-batch instead of padding them; same loss, less work
    workers: int = 4  # processes that decode images


@dataclass
class LoraConfig:
    """Low-rank adapters, used by stage "lora"."""

    rank: int = 16  # rank of the update of each matrix
    alpha: int = 32  # the update is scaled by alpha / rank
    dropout: float = 0.0  # on the adapters' input
    targets: list[str] = field(default_factory=list)  # names of the LLM's layers; none takes all linear ones


@dataclass
class FinetuneConfig:
    """Finetunes a vision-language model: vision backbone, projector and LLM. Defaults are the paper's.

    Without --config_path and --model it runs recipes/configs/miniature.yaml, a complete finetune on a laptop.
    """

    model: str | None = None  # named model that presets what follows, such as aligned-clip-vit-l-336px+7b
    vision_backbone: str = "clip-vit-l-336px"  # registered id, "timm:<timm id>", or see python -m vision_backbones list
    llm: str = "llama2-7b-pure"  # registered id, Hugging Face id or local folder
    projector: str = "gelu-mlp"  # linear, gelu-mlp, fused-gelu-mlp, transformer, pretrained-decoder or truncated
    image_resize_strategy: str = "resize-naive"  # resize-naive, resize-crop or letterbox
    image_size: int | None = None  # side of the input image in pixels; the backbone's own if null
    prompt_style: str = "auto"  # chat template: a name, FILE.jinja, or auto: the LLM's own, else "pure"; docs/llms.md
    init_from: str | None = None  # run or save_pretrained folder to start from, such as the run of stage align
    # where the LLM of a LoRA run --init_from lies now, if it was moved; or PART=PATH of several
    base: str | None = None

    data: DataConfig = field(default_factory=DataConfig)
    # align: projector; finetune: and LLM; full-finetune: and backbone; lora: adapters on the LLM
    stage: Stage = "finetune"
    lora: LoraConfig = field(default_factory=LoraConfig)
    quantize: Quantization | None = None  # keeps the frozen LLM of stage lora or align in so few bits

    epochs: int = 2  # passes over the data
    max_steps: int | None = None  # optimizer steps to stop after, through as many epochs as that takes
    global_batch_size: int = 128  # examples an optimizer step, over all processes
    per_device_batch_size: int = 16  # examples a micro-batch on one process
    max_length: int = 2048  # text tokens an example; what is longer is cut
    learning_rate: float = 2e-5  # peak
    min_learning_rate: float = 0.0  # where the cosine ends
    warmup_ratio: float = 0.03  # share of the steps with linear warm-up
    weight_decay: float = 0.1  # AdamW
    # what decays; "as-reference": nothing, as when the reference trains on several GPUs
    decay: Decay = "matrices"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    precision: Precision = "bf16"  # "bf16" computes in bfloat16 with float32 weights, "fp32" does not
    gradient_checkpointing: bool = True  # recompute activations in the backward pass: less memory, a third slower
    seed: int = 7  # of new weights and of the order of the data

    processes: int | None = None  # how many must have joined one group, else it is an error; null takes any number
    # of several processes; grad-op has less traffic, hybrid shards within a node, none is DDP
    sharding: Sharding = "full"
    reduce_dtype: ReduceDtype = "float32"  # in which sharded gradients are summed over processes
    timeout_minutes: float = 30.0  # a process that waits longer for the others ends the run with an error
    save_every_steps: int | None = 500  # steps between the checkpoints that an interrupted run continues from
    keep_last: int = 2  # how many of the newest stay
    keep_every: int | None = None  # those of every so many steps stay as well
    resume: str = "auto"  # auto continues the unfinished run of this run_id; never; or a step checkpoint or other run

    eval_tasks: list[str] = field(default_factory=list)  # benchmarks to evaluate at the end; see python -m eval list
    eval_root: str = ""  # folder that holds their data sets; "miniature:400" draws that many scenes as five benchmarks

    run_root: str = "runs"  # folder of all runs
    run_id: str | None = None  # folder of this run; model, stage and time if null
    trackers: list[str] = field(
        default_factory=list
    )  # in addition to metrics.jsonl: tensorboard, wandb, trackio, ... of accelerate
    plugins: list[str] = field(default_factory=list)  # modules that register backbones of your own


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


def _check(config: FinetuneConfig) -> None:
    positive = ("epochs", "max_length", "learning_rate", "data.held_out_limit", "timeout_minutes", "keep_last")
    check_positive(config, positive)
    for name in ("processes", "save_every_steps", "keep_every"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}: expected at least 1, or null")
    check_quantize(config)
    if not config.data.annotations:
        raise ValueError("no data: give --data.annotations a LLaVA json file, or miniature:10000 for drawn scenes")
    scenes = config.data.annotations.partition("miniature:")[2]
    if config.data.annotations.startswith("miniature:") and not scenes.isdecimal():
        raise ValueError(
            f"--data.annotations is {config.data.annotations!r}: expected a number of questions, miniature:10000"
        )
