"""The settings of a finetune, and how command line, YAML and named models make them up.

Lives here and not in `prismatic`, whose import brings torch and transformers: `--help` must answer at once.
"""

import dataclasses
import difflib
import operator
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
import yaml

CONFIGS = Path(__file__).resolve().parent / "configs"
CHOICES = {
    "stage": ("align", "finetune", "full-finetune", "lora"),
    "precision": ("bf16", "fp32"),
    "data.sampler": ("split-modality", "shuffle"),
    "data.on_bad_image": ("error", "skip"),
}


@dataclass
class DataConfig:
    """What is trained on."""

    annotations: str = ""  # LLaVA json or jsonl; "miniature:6000" draws that many scenes of the miniature world
    image_root: str | None = None  # folder that image paths are relative to; the annotations' own folder if null
    held_out: str | None = (
        None  # LLaVA json of single questions, answered before and after; the miniature world has one
    )
    held_out_limit: int = 500  # how many of them
    on_bad_image: str = "error"  # "error" stops at a missing or corrupt image, "skip" leaves its row out and counts
    exif_rotation: bool = False  # turn images as their EXIF tag says (the paper does not)
    sampler: str = "split-modality"  # "split-modality" groups by length and never mixes text-only rows in; or "shuffle"
    packing: bool = False  # concatenate the rows of a micro-batch instead of padding them; same loss, less work
    workers: int = 4  # processes that decode images


@dataclass
class LoraConfig:
    """Low-rank adapters, used by stage "lora"."""

    rank: int = 16  # rank of the update of each matrix
    alpha: int = 32  # the update is scaled by alpha / rank
    dropout: float = 0.0  # on the adapters' input
    targets: list[str] = field(  # layers of the LLM that get adapters
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


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
    init_from: str | None = None  # run or save_pretrained folder to start from, such as the run of stage align

    data: DataConfig = field(default_factory=DataConfig)
    stage: str = (
        "finetune"  # align: projector; finetune: and LLM; full-finetune: and backbone; lora: adapters on the LLM
    )
    lora: LoraConfig = field(default_factory=LoraConfig)

    epochs: int = 2  # passes over the data
    max_steps: int | None = None  # optimizer steps to stop after, whatever the epochs
    global_batch_size: int = 128  # examples an optimizer step, over all processes
    per_device_batch_size: int = 16  # examples a micro-batch on one process
    max_length: int = 2048  # text tokens an example; what is longer is cut
    learning_rate: float = 2e-5  # peak
    min_learning_rate: float = 0.0  # where the cosine ends
    warmup_ratio: float = 0.03  # share of the steps with linear warm-up
    weight_decay: float = 0.1  # AdamW, on matrices only
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    precision: str = "bf16"  # "bf16" computes in bfloat16 with float32 weights, "fp32" does not
    gradient_checkpointing: bool = True  # recompute activations in the backward pass: less memory, 30 % slower
    seed: int = 7  # of new weights and of the order of the data

    run_root: str = "runs"  # folder of all runs
    run_id: str | None = None  # folder of this run; model, stage and time if null
    trackers: list[str] = field(default_factory=list)  # beside jsonl: tensorboard, wandb, trackio, ... (see accelerate)
    plugins: list[str] = field(default_factory=list)  # modules that register backbones of your own


def parse_finetune(argv: list[str]) -> FinetuneConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    try:
        config = _parse(FinetuneConfig, argv, default="miniature.yaml")
        _check(config)
        return config
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check(config: FinetuneConfig) -> None:
    for name, choices in CHOICES.items():
        value = operator.attrgetter(name)(config)
        if value not in choices:
            raise ValueError(f"--{name} is {value!r}: expected {' or '.join(choices)}")
    for name in ("epochs", "max_length", "learning_rate", "data.held_out_limit"):
        if operator.attrgetter(name)(config) <= 0:
            raise ValueError(f"--{name} is {operator.attrgetter(name)(config)}: expected more than 0")
    if config.max_steps is not None and config.max_steps < 1:
        raise ValueError(f"--max_steps is {config.max_steps}: expected at least 1, or null for all steps of the epochs")
    if not config.data.annotations:
        raise ValueError("no data: give --data.annotations a LLaVA json file, or miniature:6000 for drawn scenes")
    scenes = config.data.annotations.partition("miniature:")[2]
    if config.data.annotations.startswith("miniature:") and not scenes.isdecimal():
        raise ValueError(
            f"--data.annotations is {config.data.annotations!r}: expected a number of scenes, miniature:6000"
        )


def named_models() -> dict[str, dict[str, Any]]:
    """The named model configurations of `recipes/configs/models.yaml`: id to settings."""
    return yaml.safe_load((CONFIGS / "models.yaml").read_text())


def unknown(kind: str, name: str, known) -> ValueError:
    """A ValueError that names the closest known names."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return ValueError(f"unknown {kind} {name!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))


def _parse(config_class, argv: list[str], default: str):
    """Named model < YAML file < command line."""
    given, rest = _split(argv)
    fields = _flags(config_class)
    for flag in (a.split("=")[0] for a in rest if a.startswith("--")):
        if flag[2:] not in {*fields, "help"}:
            raise unknown("setting", flag, [f"--{f}" for f in fields])
    path = given.get("config_path")
    if path is None and "model" not in given:
        path = CONFIGS / default
    settings = yaml.safe_load(Path(path).read_text()) or {} if path else {}
    for key in _flatten(settings):
        if key not in fields:
            raise unknown(f"setting in {path}", key, fields)
    name = given.get("model", settings.get("model"))
    if name is not None:
        models = named_models()
        if name not in models:
            raise unknown("model", name, models)
        settings = {**models[name], **settings, "model": name}
    rest = _listed(config_class, rest)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as merged:
        yaml.safe_dump(settings, merged)
        merged.flush()
        try:
            return draccus.parse(config_class, config_path=merged.name, args=rest)
        except draccus.ParsingError as error:
            raise ValueError(" ".join(str(error).split())) from None


def _listed(config_class, argv: list[str]) -> list[str]:
    """Values of list settings in brackets, so that `--plugins a,b` means `--plugins [a,b]`."""
    lists = {f"--{name}" for name in _flags(config_class) if isinstance(_default(config_class, name), list)}
    argv = [part for a in argv for part in (a.split("=", 1) if a.split("=")[0] in lists else [a])]
    return [
        f"[{value}]" if flag in lists and not value.startswith("[") else value
        for flag, value in zip(["", *argv], argv, strict=False)
    ]


def _default(config_class, name: str):
    return operator.attrgetter(name)(config_class())


def _split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """`--config_path` and `--model` apart from the other arguments."""
    given, rest, i = {}, [], 0
    while i < len(argv):
        flag, equals, value = argv[i].partition("=")
        if flag in ("--config_path", "--model"):
            if not equals:
                i += 1
                if i == len(argv):
                    raise ValueError(f"{flag} needs a value")
                value = argv[i]
            given[flag[2:]] = value
        else:
            rest.append(argv[i])
        i += 1
    return given, rest


def _flags(config_class, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(config_class):
        nested = dataclasses.is_dataclass(f.type)
        names += [f"{prefix}{f.name}"] + (_flags(f.type, f"{prefix}{f.name}.") if nested else [])
    return names


def _flatten(settings: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in settings.items():
        keys += [f"{prefix}{key}"] + (_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [])
    return keys
