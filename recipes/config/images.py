"""The settings of the recipes that train on images alone: align, mim, classify."""

from dataclasses import dataclass, field

from recipes.config.choices import ClassifierHead, CropMode, MaskSampler, OnBadImage, Precision, StudentHead
from recipes.config.parsing import check_positive, parse


@dataclass
class ImageDataConfig:
    """What is trained on."""

    # folder with a folder for each class, tar shards (DIR/*.tar, DIR/in21k-{000..123}.tar), or miniature:20000
    train: str = ""
    validation: str = ""  # likewise; the loss is measured on all of it after every epoch
    # timm's training crops: rkrc (resize keeping the ratio, centre), rkrr, rrc; none: as in validation
    crop_mode: CropMode = "rkrc"
    horizontal_flip: float = 0.5  # probability
    auto_augment: str | None = None  # timm's notation of a policy, such as rand-m9-mstd0.5-inc1
    on_bad_image: OnBadImage = "error"  # "error" stops at an unreadable image, "skip" leaves it out and counts
    workers: int = 4  # processes that decode images


@dataclass
class MaskConfig:
    """Which patches stay visible."""

    # in a uniform mask, any share of visible patches is as likely
    sampler: MaskSampler = "uniform"
    keep_ratio: float = 0.5  # share of visible patches, for bernoulli and blockwise
    antithetical: bool = True  # follow every mask by its complement
    null: bool = True  # and add one that hides nothing


@dataclass
class ImageTrainingConfig:
    """What align, mim and classify have in common."""

    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    epochs: int = 5  # passes over the training images
    max_steps: int | None = None  # optimizer steps to stop after, through as many epochs as that takes
    global_batch_size: int = 1024  # images an optimizer step, over all processes
    per_device_batch_size: int = 128  # images a micro-batch on one process, at most; the rest is accumulated
    learning_rate: float = 3e-4  # peak
    min_learning_rate: float = 3e-5  # where the cosine ends
    warmup_epochs: float = 0.0  # linear warm-up
    warmup_learning_rate: float = 0.0  # where it begins
    weight_decay: float = 0.01  # AdamW
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # AdamW
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    ema_decay: float | None = None  # keep a moving average of the weights, and take it for validation and as the result
    precision: Precision = "bf16"  # "bf16" computes in bfloat16 with float32 weights, "fp32" does not
    seed: int = 0  # of new weights, of the order of the images, crops and masks

    run_root: str = "runs"  # folder of all runs
    run_id: str | None = None  # folder of this run, which continues if it was interrupted; backbone and time if null
    save_every_steps: int | None = None  # checkpoint to continue from, besides the one after every epoch
    trackers: list[str] = field(
        default_factory=list
    )  # in addition to metrics.jsonl: tensorboard, wandb, trackio, ... of accelerate
    plugins: list[str] = field(default_factory=list)  # modules that register backbones of your own


@dataclass
class MaskedTrainingConfig(ImageTrainingConfig):
    """What align and mim have in common."""

    # frozen: registered id, "timm:<timm id>", or a run; see python -m vision_backbones list
    teacher: str = "clip-vit-b"
    student: str | None = None  # what is trained, likewise; a copy of the teacher if null
    soft_cap: float | None = 30.0  # attention logits of the student stay below it; null for plain attention
    student_head: StudentHead = "linear"  # on the student's tokens
    loss: str = "mse"  # mse (on targets scaled to unit variance), cosine, l1, masked_mse or unmasked_mse
    masks: MaskConfig = field(default_factory=MaskConfig)
    # weight decay on every parameter as in the paper; false spares biases, norms and other vectors
    decay_all: bool = True
    as_reference: bool = False  # reproduce the bugs of the paper's code (see docs/align.md)


@dataclass
class AlignConfig(MaskedTrainingConfig):
    """Locality alignment: MaskEmbed post-training of a vision backbone. Defaults are the paper's.

    Without --config_path and --model it runs recipes/configs/align-miniature.yaml, a complete alignment on a laptop.
    """

    # preset of the paper: clip-vit-b-aligned, siglip-vit-so400m-aligned, ... (configs/alignments.yaml)
    model: str | None = None
    teacher_skip_blocks: int = 1  # blocks of the teacher left out at the end
    prefix_only: bool = False  # predict the teacher's prefix tokens alone (class token, registers)
    decoder_blocks: int = 2  # ViT blocks of the decoder
    decoder_width: int | None = None  # its channels; the student's if null
    decoder_heads: int | None = None  # its attention heads; the student's if null


@dataclass
class MimConfig(MaskedTrainingConfig):
    """Masked image modelling: the student sees masked images and predicts the frozen teacher's tokens of whole ones.

    A precursor of alignment for backbones that never saw masks. Without --config_path it runs on the miniature world.
    """

    masks: MaskConfig = field(default_factory=lambda: MaskConfig(null=False))


@dataclass
class ClassifyConfig(ImageTrainingConfig):
    """Finetunes a vision backbone, such as an aligned one, as an image classifier.

    Defaults are those usual for finetuning ViTs on ImageNet. Without --config_path it runs on the miniature world.
    """

    vision_backbone: str = "clip-vit-b"  # registered id, "timm:<timm id>", or a run of align
    # linear reads the mean patch, transformer has one more block, attention a learned query
    head: ClassifierHead = "linear"
    layer_decay: float | None = 0.75  # each block learns this much slower than the next; null for one rate
    mixup: float = 0.8  # alpha of mixup; 0 is off
    cutmix: float = 1.0  # alpha of cutmix; 0 is off
    label_smoothing: float = 0.1  # share of a target spread over all classes
    epochs: int = 50  # passes over the training images
    min_learning_rate: float = 1e-6  # where the cosine ends
    warmup_epochs: float = 5.0  # linear warm-up
    weight_decay: float = 0.05  # AdamW
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW


def parse_classify(argv: list[str]) -> ClassifyConfig:
    """The configuration of a command line of recipes/classify.py. Errors are one line on stderr and exit status 2."""
    return parse(ClassifyConfig, argv, default="classify-miniature.yaml", check=check_image_training)


def parse_align(argv: list[str]) -> AlignConfig:
    """The configuration of a command line of recipes/align.py. Errors are one line on stderr and exit status 2."""
    return parse(AlignConfig, argv, default="align-miniature.yaml", named="alignments.yaml", check=check_image_training)


def parse_mim(argv: list[str]) -> MimConfig:
    """The configuration of a command line of recipes/mim.py. Errors are one line on stderr and exit status 2."""
    return parse(MimConfig, argv, default="mim-miniature.yaml", check=check_image_training)


def check_image_training(config: ImageTrainingConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    check_positive(config, ("epochs", "learning_rate", "global_batch_size", "per_device_batch_size"))
    if config.save_every_steps is not None and config.save_every_steps < 1:
        raise ValueError(f"--save_every_steps is {config.save_every_steps}: expected at least 1, or null")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise ValueError(f"--ema_decay is {config.ema_decay}: expected between 0 and 1, such as 0.9998, or null")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"--betas is {config.betas}: expected two numbers from 0 up to 1, such as 0.9,0.95")
    if not 0 <= config.warmup_epochs < config.epochs:
        raise ValueError(
            f"--warmup_epochs is {config.warmup_epochs}: expected 0 or more, below the {config.epochs} epochs"
        )
    if isinstance(config, MaskedTrainingConfig):
        if not 0 < config.masks.keep_ratio < 1:
            raise ValueError(f"--masks.keep_ratio is {config.masks.keep_ratio}: expected between 0 and 1")
        if config.soft_cap is not None and config.soft_cap <= 0:
            raise ValueError(f"--soft_cap is {config.soft_cap}: expected more than 0, or null for none")
    for name in ("train", "validation"):
        if not getattr(config.data, name):
            raise ValueError(
                f"no {name} images: give --data.{name} a folder of class folders, tar shards (DIR/*.tar), or "
                "miniature:20000 for drawn scenes"
            )
