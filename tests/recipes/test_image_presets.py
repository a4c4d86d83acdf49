"""Every run of the reference's image training, argument by argument, against the preset of its name."""

import json
import re

import pytest
import timm
from golden_cases import golden_dir

from recipes.config.images import parse_align, parse_classify, parse_mim
from recipes.config.presets import read_presets
from vision_backbones import check_spec, get_spec, list_backbones

FACTS = golden_dir().parent / "facts" / "alignment_presets.json"
RUNS = json.loads(FACTS.read_text())["runs"] if FACTS.is_file() else {}
requires_facts = pytest.mark.skipif(not RUNS, reason="the reference's settings are not there")
IMAGES = ["--data.train", "miniature:64", "--data.validation", "miniature:64:1"]
RECIPES = {"align": ("align", parse_align), "mim": ("mim", parse_mim), "finetune": ("classify", parse_classify)}
PROCESSES = 4  # on which the reference trains

# What arguments are that a run does not name: defaults of timm's training script, and of the reference's own.
DEFAULTS = {
    "aa": None, "reprob": 0.0, "hflip": 0.5, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3],
    "train_interpolation": "random", "mixup": 0.0, "cutmix": 0.0, "drop_path": None, "model_ema": False,
    "crop_pct": None, "img_size": None,
}  # fmt: skip
MASKED = {"loss_function": "mse", "mask_sampling": "uniform", "antithetical_sampling": True}
OWN_DEFAULTS = {
    "align": MASKED | {"include_null_mask": True, "skip_blocks": 1, "prefix_only": False, "decoder_qk_norm": None},
    "mim": MASKED,  # whether it also shows whole images is not known
    "finetune": {},
}
FIXED = {
    "amp": True,
    "opt": "adamw",
    "sched": "cosine",
    "sched_on_updates": True,
    "crop_mode": "center",
}  # no other
ELSEWHERE = {  # arguments that no preset sets, and why
    "project": "where a tracker shows the run",
    "torchcompile": "how fast it trains, not what",
    "train_split": "--data.train is the user's",
    "val_split": "--data.validation is the user's",
    "num_classes": "as many as the images have",
    "teacher_checkpoint": "--teacher is the user's",
    "initial_checkpoint": "--vision_backbone is the user's",
}
TIMMS = {  # ViTs that the reference names without timm's tag, or that timm does not have
    "vit_so400m_patch14_siglip_224": "vit_so400m_patch14_siglip_224.webli",
    "vit_so400m_patch14_siglip_384": "vit_so400m_patch14_siglip_384.webli",
    "vit_base_patch16_mocov3_224": "vit_base_patch16_224",
}


def plain(name):
    """timm's id of a ViT of the reference's, where a first letter stands for the soft cap."""
    name = name.removeprefix("s") if name.startswith("svit") else name
    return TIMMS.get(name, name)


def capped(name):
    return 30.0 if name.startswith("svit") else None


def learner(config):
    """The backbone that is trained, at the size of the run."""
    name = config.vision_backbone if hasattr(config, "vision_backbone") else config.student or config.teacher
    return check_spec(name, image_size=config.image_size)


def check_backbone(spec, name):
    if spec.aligned:  # a run's, which has no tag
        assert spec.arch == plain(name).split(".")[0]
    else:
        assert spec.arch == plain(name) and (spec.weights == "moco-vit-b" or timm.is_model_pretrained(spec.arch))
    assert (spec.weights == "moco-vit-b") == ("mocov3" in name)


def check_teacher(config, name, run):
    check_backbone(get_spec(config.teacher), name)
    assert get_spec(config.teacher).soft_cap == capped(name)


def check_student(config, name, run):
    check_backbone(learner(config), name)
    assert config.soft_cap == capped(name)


def check_classifier(config, name, run):
    check_backbone(learner(config), name)
    assert learner(config).soft_cap == capped(name)


def check_batch(config, size, run):
    assert config.global_batch_size == run["batch_size"] * run["grad_accum_steps"] * PROCESSES
    assert config.per_device_batch_size == run["batch_size"]


def check_epochs(config, epochs, run):
    assert (config.epochs, config.max_steps) == (epochs, None)


def check_optimizer(config, options, run):
    assert options.keys() <= {"betas", "layer_decay"}
    assert config.betas == options.get("betas", [0.9, 0.999])
    assert getattr(config, "layer_decay", None) == options.get("layer_decay")


def check_model_kwargs(config, kwargs, run):
    assert kwargs.keys() == {"img_size"}
    check_image_size(config, kwargs["img_size"], run)


def check_image_size(config, size, run):
    timms = timm.get_pretrained_cfg(plain(run.get("model") or run["student_model"]))
    assert learner(config).image_size == (size or timms.input_size[-1])


def check_validation(config, crop_pct, run):
    """Validation images are seen as timm has it for the ViT, but for a crop that the run names."""
    spec, name = learner(config), run.get("model") or run["student_model"]
    if "mocov3" not in name:
        timms = timm.get_pretrained_cfg(plain(name))
        assert (spec.mean, spec.std, spec.interpolation) == (timms.mean, timms.std, timms.interpolation)
        assert (config.data.validation_crop or spec.crop_pct) == (crop_pct or timms.crop_pct)
        assert timms.crop_mode == "center"


def check_has_weights(config, pretrained, run):
    """A ViT that starts from timm's weights, or from those of a run."""
    assert config.pretrained and pretrained != any(run.get(f"{part}_checkpoint") for part in ("teacher", "initial"))


def same(setting, translated=lambda value: value):
    """A check that a setting is what an argument says."""

    def check(config, value, run):
        for part in setting.split("."):
            config = getattr(config, part)
        assert config == translated(value), setting

    return check


CHECKS = {
    "amp_dtype": same("precision", {"bfloat16": "bf16"}.get),
    "batch_size": check_batch,
    "validation_batch_size": same("per_device_batch_size"),
    "grad_accum_steps": check_batch,
    "epochs": check_epochs,
    "lr": same("learning_rate", float),
    "min_lr": same("min_learning_rate", float),
    "warmup_epochs": same("warmup_epochs"),
    "warmup_lr": same("warmup_learning_rate", float),
    "weight_decay": same("weight_decay"),
    "opt_kwargs": check_optimizer,
    "clip_grad": same("max_grad_norm"),
    "model_ema": same("ema_decay", {False: None}.get),
    "drop_path": same("drop_path", lambda rate: rate or 0.0),
    "mixup": same("mixup"),
    "cutmix": same("cutmix"),
    "smoothing": same("label_smoothing"),
    "train_crop_mode": same("data.crop_mode"),
    "scale": same("data.crop_scale"),
    "ratio": same("data.crop_ratio"),
    "train_interpolation": same("data.interpolation"),
    "hflip": same("data.horizontal_flip"),
    "aa": same("data.auto_augment"),
    "color_jitter": same("data.color_jitter"),
    "reprob": same("data.random_erasing"),
    "crop_pct": check_validation,
    "img_size": check_image_size,
    "model_kwargs": check_model_kwargs,
    "model": check_classifier,
    "pretrained": check_has_weights,
    "teacher_model": check_teacher,
    "teacher_pretrained": check_has_weights,
    "student_model": check_student,
    "student_pretrained": same("pretrained"),
    "loss_function": same("loss"),
    "mask_sampling": same("masks.sampler"),
    "bernoulli_mask_ratio": same("masks.keep_ratio"),  # as the golden masks show, what the reference calls masked stays
    "blockwise_mask_ratio": same("masks.keep_ratio"),
    "antithetical_sampling": same("masks.antithetical"),
    "include_null_mask": same("masks.null"),
    "skip_blocks": same("teacher_skip_blocks"),
    "prefix_only": same("prefix_only"),
    "decoder_qk_norm": same("decoder_qk_norm"),
    "decoder_qkv_bias": same("decoder_qkv_bias"),
}


def aligned_as(run):
    """A backbone that stands for the run from which another goes on."""
    arch = plain(run.get("model") or run["teacher_model"]).split(".")[0]
    return next(id for id in list_backbones() if get_spec(id).aligned and get_spec(id).arch == arch)


@requires_facts
@pytest.mark.parametrize("name", RUNS)
def test_every_argument_of_the_run(name, capsys):
    (kind, model), run = name.split("/"), RUNS[name]
    parse, arguments = RECIPES[kind][1], ["--model", model, *IMAGES]
    if checkpoint := run.get("teacher_checkpoint") or run.get("initial_checkpoint"):
        flag = "--vision_backbone" if kind == "finetune" else "--teacher"
        with pytest.raises(SystemExit) as stopped:
            parse(arguments)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and f"pass {flag} RUN" in said and said.count("\n") == 1
        before, source = re.search(r"`prismatic (\w+) --model (\S+)`", said).groups()
        root, folder = checkpoint.split("/")[:2]
        assert f"{before}/{source}" in RUNS and folder.startswith(source) and (before == "mim") == root.endswith("mim")
        arguments += [flag, aligned_as(run)]
    config = parse(arguments)
    expected = DEFAULTS | OWN_DEFAULTS[kind] | run
    for argument, value in expected.items():
        if argument in FIXED:
            assert value == FIXED[argument]
        elif argument not in ELSEWHERE:
            CHECKS[argument](config, value, expected)


@requires_facts
def test_presets_are_the_runs_and_what_they_make():
    presets = read_presets("images.yaml")
    assert len(RUNS) == 58 and presets.keys() == {recipe for recipe, _ in RECIPES.values()}
    for kind, (recipe, _) in RECIPES.items():
        named = {name.partition("/")[2] for name in RUNS if name.startswith(f"{kind}/")}
        assert named <= presets[recipe].keys()
        for other in presets[recipe].keys() - named:  # the aligned backbone of the catalog that a run makes
            run = other.removesuffix("-aligned").replace("px", "")
            assert recipe == "align" and presets[recipe][other] == presets[recipe][run]
            assert get_spec(other).arch == get_spec(presets[recipe][run]["teacher"]).arch.split(".")[0]


@pytest.mark.parametrize(
    ("parse", "model", "message"),
    [
        (parse_mim, "in1k-vit-b-cosine", "'in1k-vit-b-cosine' is a model of `prismatic align`, not of `prismatic mim`"),
        (parse_align, "clip-vit-l-336-aligned", "a model of `prismatic classify`, not of `prismatic align`: did you"),
        (parse_mim, "clip-vit-l", "a model of `prismatic align` and `prismatic classify`, not of `prismatic mim`"),
        (parse_classify, "clip-vit-b-alined", "unknown model 'clip-vit-b-alined': did you mean clip-vit-b-aligned"),
        (parse_classify, "zzz", "images.yaml names them all"),
    ],
)
def test_a_name_of_another_recipe_or_of_none(parse, model, message, capsys):
    with pytest.raises(SystemExit):
        parse(["--model", model, *IMAGES])
    assert message in capsys.readouterr().err
