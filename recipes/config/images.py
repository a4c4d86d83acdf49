"""The settings of the recipes that train on images alone: align, mim, classify."""

from dataclasses import dataclass, field

from recipes.config.choices import (
    ClassifierHead,
    CropMode,
    Interpolation,
    MaskSampler,
    OnBadImage,
    Precision,
    StudentHead,
)
from recipes.config.parsing import check_least, check_positive, parse
from recipes.config.trackers import WandbConfig

RUN_OF = "RUN of "  # begins what a preset has in place of a run that only its user can name


@dataclass
class ImageDataConfig:
    """What is trained on."""

    # folder with one subfolder per class, tar shards (DIR/*.tar, DIR/in21k-{000..123}.tar), or miniature:20000
    train: str = ""
    validation: str = ""  # validation images, in the same forms as --data.train; all of them are used after every epoch
    # timm's training crops: rkrc (resize keeping the ratio, centre crop), rkrr (the same, random crop),
    # rrc (random resized crop); none: as in validation
    crop_mode: CropMode = "rkrc"
    # least and greatest area of a crop, as a share of the image's (rkrc, rkrr: of the centre's); empty: timm's
    crop_scale: list[float] = field(default_factory=list)
    # least and greatest change of the aspect ratio; empty: timm's
    crop_ratio: list[float] = field(default_factory=list)
    # how training images are resized; random: by chance bilinear or bicubic; null: as the backbone's
    interpolation: Interpolation | None = None
    horizontal_flip: float = 0.5  # probability of a horizontal flip
    auto_augment: str | None = None  # augmentation policy in timm's notation, such as rand-m9-mstd0.5-inc1
    # how much brightness, contrast and saturation vary, such as 0.4; a policy other than 3a replaces it; null: not
    color_jitter: float | None = None
    random_erasing: float = 0.0  # probability that a rectangle of the image is filled with noise
    # share of the resized image's shorter edge that validation's centre crop keeps; null: the backbone's
    validation_crop: float | None = None
    # "error" stops at an unreadable image; "skip" drops it and counts it in the metrics
    on_bad_image: OnBadImage = "error"
    workers: int = 4  # processes that decode images


@dataclass
class MaskConfig:
    """Which patches stay visible."""

    # uniform: visible share drawn uniformly from 0 to 1 for each mask; bernoulli: each patch visible with probability
    # keep_ratio; blockwise: rectangles until keep_ratio of the patches is visible
    sampler: MaskSampler = "uniform"
    keep_ratio: float = 0.5  # share of visible patches for bernoulli and blockwise
    antithetical: bool = True  # follow every mask by its complement
    null: bool = True  # also use an all-visible mask


@dataclass
class ImageTrainingConfig:
    """What align, mim and classify have in common."""

    # run of the paper's code, such as clip-vit-b: its settings, which others go over (recipes/configs/images.yaml)
    model: str | None = None
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    image_size: int | None = None  # pixels of the square input, to which position embeddings fit; null: the backbone's
    pretrained: bool = True  # start from pretrained weights; false: from random ones (a teacher is always pretrained)
    drop_path: float = 0.0  # greatest probability, in the last block, of leaving out a block for an image
    mixup: float = 0.0  # alpha of mixup, which blends the images of a micro-batch in pairs; 0: off
    cutmix: float = 0.0  # alpha of cutmix, which pastes a rectangle of the other image; 0: off
    epochs: int = 5  # passes over the training images
    max_steps: int | None = None  # total number of optimizer steps; overrides --epochs
    global_batch_size: int = 1024  # images per optimizer step, over all processes
    # maximum images per micro-batch on each process; gradients are accumulated up to the global batch
    per_device_batch_size: int = 128
    learning_rate: float = 3e-4  # peak learning rate
    min_learning_rate: float = 3e-5  # learning rate at the end of the cosine schedule
    warmup_epochs: float = 0.0  # epochs of linear warm-up
    warmup_learning_rate: float = 0.0  # learning rate at the start of warm-up
    weight_decay: float = 0.01  # AdamW weight decay
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # AdamW beta1,beta2
    max_grad_norm: float = 1.0  # global norm to which gradients are clipped
    # decay of a moving average of the weights, which is then validated and saved as the result; null: off
    ema_decay: float | None = None
    precision: Precision = "bf16"  # bf16: compute in bfloat16 with float32 weights; fp32: compute in float32
    seed: int = 0  # random seed for new weights, the order of the images, crops and masks

    run_root: str = "runs"  # parent folder of all runs
    run_id: str | None = None  # name of this run's folder, an unfinished run there is resumed; null: backbone and time
    # steps between checkpoints to resume from, in addition to the one after every epoch
    save_every_steps: int | None = None
    # accelerate's trackers to use besides metrics.jsonl: tensorboard, wandb, trackio, ...
    trackers: list[str] = field(default_factory=list)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    # modules to import first, which register your backbones, projectors, losses, prompt styles or tasks
    plugins: list[str] = field(default_factory=list)


@dataclass
class MaskedTrainingConfig(ImageTrainingConfig):
    """What align and mim have in common."""

    # frozen backbone: registered id, timm:<id>, or a run of align (list: prismatic backbones list)
    teacher: str = "clip-vit-b"
    # backbone to train: registered id, timm:<id>, or a run of align; null: a copy of the teacher
    student: str | None = None
    soft_cap: float | None = 30.0  # upper bound of the student's attention logits (soft cap); null: plain attention
    student_head: StudentHead = "linear"  # output layer of the student
    loss: str = "mse"  # name of the loss (list: prismatic losses)
    masks: MaskConfig = field(default_factory=MaskConfig)
    # weight decay on every parameter, as in the paper; false exempts biases, norms and other vectors
    decay_all: bool = True
    # compute the student's blocks again in the backward pass: half the memory for a quarter more time
    gradient_checkpointing: bool = False
    compile: bool = False  # compile the blocks (torch.compile): a minute at the start, faster steps on GPUs
    as_reference: bool = False  # reproduce the bugs of the paper's code (see docs/align.md)


@dataclass
class AlignConfig(MaskedTrainingConfig):
    """Locality alignment: MaskEmbed post-training of a vision backbone.

    Defaults are the paper's, but for the range of crops and the interpolation, which are timm's and the backbone's.

    Without --config_path and --model it runs recipes/configs/align-miniature.yaml, a complete alignment on a laptop.
    """

    teacher_skip_blocks: int = 1  # number of the teacher's last blocks to leave out
    prefix_only: bool = False  # predict only the teacher's prefix tokens (class token, registers)
    decoder_blocks: int = 2  # number of ViT blocks in the decoder
    decoder_width: int | None = None  # channels of the decoder; null: the student's
    decoder_heads: int | None = None  # attention heads of the decoder; null: the student's
    decoder_qk_norm: bool | None = None  # normalise queries and keys in the decoder; null: where the student does
    decoder_qkv_bias: bool = True  # biases of queries, keys and values in the decoder


@dataclass
class MimConfig(MaskedTrainingConfig):
    """Masked image modelling: the student sees masked images and predicts the frozen teacher's tokens of whole ones.

    A preliminary stage before alignment, for backbones that were never trained on masked images. Without --config_path
    and --model it runs on the miniature world.
    """

    masks: MaskConfig = field(default_factory=lambda: MaskConfig(null=False))


@dataclass
class ClassifyConfig(ImageTrainingConfig):
    """Finetunes a vision backbone, such as an aligned one, as an image classifier.

    Defaults are the usual ones for finetuning ViTs on ImageNet. Without --config_path and --model it runs on the
    miniature world.
    """

    vision_backbone: str = "clip-vit-b"  # registered id, timm:<id>, or a run of align (list: prismatic backbones list)
    # linear: on the mean patch; transformer: one more block first; attention: pooling with a learned query
    head: ClassifierHead = "linear"
    freeze_backbone: bool = False  # train the head alone (linear probing)
    # learning rate of each block as a fraction of the next one's; null: one rate for all
    layer_decay: float | None = 0.75
    mixup: float = 0.8  # alpha of mixup; 0: off
    cutmix: float = 1.0  # alpha of cutmix; 0: off
    label_smoothing: float = 0.1  # share of each target spread over all classes
    epochs: int = 50  # passes over the training images
    min_learning_rate: float = 1e-6  # learning rate at the end of the cosine schedule
    warmup_epochs: float = 5.0  # epochs of linear warm-up
    weight_decay: float = 0.05  # AdamW weight decay
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW beta1,beta2


def parse_classify(argv: list[str]) -> ClassifyConfig:
    """The configuration of a command line of recipes/classify.py. Errors are one line on stderr and exit status 2."""
    return _parse(ClassifyConfig, argv, "classify")


def parse_align(argv: list[str]) -> AlignConfig:
    """The configuration of a command line of recipes/align.py. Errors are one line on stderr and exit status 2."""
    return _parse(AlignConfig, argv, "align")


def parse_mim(argv: list[str]) -> MimConfig:
    """The configuration of a command line of recipes/mim.py. Errors are one line on stderr and exit status 2."""
    return _parse(MimConfig, argv, "mim")


def _parse(config_class, argv: list[str], recipe: str):
    default = f"{recipe}-miniature.yaml"
    return parse(config_class, argv, default=default, named="images.yaml", recipe=recipe, check=check_image_training)


def check_image_training(config: ImageTrainingConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    for name in ("teacher", "vision_backbone"):
        if (given := getattr(config, name, "")).startswith(RUN_OF):
            raise ValueError(
                f"--model {config.model} goes on from a run of yours: pass --{name} RUN, the folder of a run of "
                f"`prismatic {given.removeprefix(RUN_OF)}`"
            )
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
    check_least(config, 1, "image_size")
    check_least(config, 0, "mixup", "cutmix")
    if not 0 <= config.drop_path < 1:
        raise ValueError(f"--drop_path is {config.drop_path}: expected 0 or more, below 1")
    if (config.mixup or config.cutmix) and min(config.per_device_batch_size, config.global_batch_size) < 2:
        raise ValueError(
            "--mixup and --cutmix mix the images of a micro-batch: --per_device_batch_size and --global_batch_size "
            "must be 2 or more"
        )
    if getattr(config, "freeze_backbone", False) and config.drop_path:
        raise ValueError(f"--drop_path is {config.drop_path}, but a frozen backbone is not regularised: drop one")
    _check_data(config.data)
    if isinstance(config, MaskedTrainingConfig):
        if not 0 < config.masks.keep_ratio < 1:
            raise ValueError(f"--masks.keep_ratio is {config.masks.keep_ratio}: expected between 0 and 1")
        if config.soft_cap is not None and config.soft_cap <= 0:
            raise ValueError(f"--soft_cap is {config.soft_cap}: expected more than 0, or null for none")


def _check_data(data: ImageDataConfig) -> None:
    if data.color_jitter is not None and data.color_jitter < 0:
        raise ValueError(f"--data.color_jitter is {data.color_jitter}: expected 0 or more, or null")
    if not 0 <= data.random_erasing <= 1:
        raise ValueError(f"--data.random_erasing is {data.random_erasing}: expected a probability, 0 to 1")
    if not 0 <= data.horizontal_flip <= 1:
        raise ValueError(f"--data.horizontal_flip is {data.horizontal_flip}: expected a probability, 0 to 1")
    if data.validation_crop is not None and not 0.1 <= data.validation_crop <= 1:
        raise ValueError(f"--data.validation_crop is {data.validation_crop}: expected 0.1 to 1, or null")
    # Of a centre crop (rkrc, rkrr) timm also takes areas above 1: the image with a border.
    for name, least, most in (("crop_scale", 0.01, 1 if data.crop_mode == "rrc" else 10), ("crop_ratio", 0.1, 10)):
        limits = getattr(data, name)
        if limits and not (len(limits) == 2 and least <= limits[0] <= limits[1] <= most):
            raise ValueError(
                f"--data.{name} is {limits}: expected the least and the greatest, from {least} to {most}, as 0.8,1.0"
            )
    for name in ("train", "validation"):
        if not getattr(data, name):
            raise ValueError(
                f"no {name} images: give --data.{name} a folder of class folders, tar shards (DIR/*.tar), or "
                "miniature:20000 for drawn scenes"
            )
