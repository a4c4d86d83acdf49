import subprocess
import sys
from pathlib import Path

import forked
import pytest

from recipes.config.app import parse_app
from recipes.config.chat import parse_chat
from recipes.config.evaluate import parse_evaluate
from recipes.config.finetune import named_models, parse_finetune
from recipes.config.images import parse_align, parse_classify, parse_mim
from recipes.config.presets import CONFIGS, read_presets
from recipes.config.probe import parse_probe
from recipes.config.reproduce import parse_reproduce
from recipes.config.serve import parse_serve

ROOT = Path(__file__).resolve().parents[2]
DATA = ["--data.annotations", "rows.json"]


def test_without_anything_it_is_the_miniature_run():
    config = parse_finetune([])
    assert (config.vision_backbone, config.llm, config.epochs) == ("miniature-aligned", "miniature", 2)
    assert config.data.annotations.startswith("miniature:") and config.learning_rate == 5e-4


def test_defaults_of_named_models_are_the_papers():
    config = parse_finetune(["--model", "aligned-clip-vit-l-336px+7b", *DATA])
    assert config.vision_backbone == "clip-vit-l-336px-aligned" and config.llm == "llama2-7b-pure"
    assert (config.epochs, config.global_batch_size, config.max_length) == (2, 128, 2048)
    assert (config.learning_rate, config.weight_decay, config.warmup_ratio, config.betas) == (
        2e-5,
        0.1,
        0.03,
        [0.9, 0.999],
    )
    assert config.precision == "bf16" and config.max_grad_norm == 1.0 and config.min_learning_rate == 0


def test_command_line_beats_yaml_beats_named_model(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: llama2+7b\nprojector: linear\nepochs: 3\ndata:\n  workers: 9\n")
    config = parse_finetune(
        ["--config_path", str(tmp_path / "mine.yaml"), "--epochs=5", "--data.packing", "true", *DATA]
    )
    assert (config.llm, config.image_resize_strategy) == ("llama2-7b-pure", "letterbox")
    assert (config.projector, config.epochs, config.data.workers, config.data.packing) == ("linear", 5, 9, True)
    assert parse_finetune(["--config_path", str(tmp_path / "mine.yaml"), "--model=phi-2+3b", *DATA]).llm == "phi-2-3b"


def refused(parse, arguments, capsys):
    """The one line on stderr with which a command line is refused."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "\n" not in printed and printed.startswith("error: ")
    return printed


def test_lists_need_no_brackets():
    config = parse_finetune(["--plugins", "mine,yours", "--trackers=tensorboard", "--lora.targets", "[q_proj]"])
    assert (config.plugins, config.trackers, config.lora.targets) == (["mine", "yours"], ["tensorboard"], ["q_proj"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "did you mean --learning_rate"),
        (["--data.pack", "true"], "did you mean --data.packing"),
        (["--model", "aligned-clip-vit-l-336+7b"], "did you mean aligned-clip-vit-l-336px+7b"),
        (["--epochs", "two"], "epochs"),
        (["--data.packing", "maybe"], "packing"),
        (["--config_path", "nowhere.yaml"], "nowhere.yaml"),
        (["--model"], "needs a value"),
        (["--model", "phi-2+3b", "--data.annotations", ""], "no data: give --data.annotations"),
        (["--stage", "finetun"], "finetune or full-finetune"),
        (["--precision", "fp8"], "expected bf16 or fp32"),
        (["--sharding", "hybird"], "expected full or grad-op or hybrid or none; did you mean hybrid"),
        (["--image_resize_strategy", "letterbx"], "expected resize-naive or resize-crop or letterbox; did you mean"),
        (["--data.sampler=shufle"], "--data.sampler is 'shufle'"),
        (["--quantize", "6bit"], "--quantize is '6bit': expected null or 4bit or 8bit"),
        (["--stage"], "--stage needs a value"),
        (["--data.sampler", "random"], "split-modality or shuffle"),
        (["--data.on_bad_image", "ignore"], "error or skip"),
        (["--data.annotations", "miniature:many"], "a number of questions"),
        (["--epochs", "0"], "more than 0"),
        (["--projector_learning_rate", "0"], "--projector_learning_rate is 0.0: expected more than 0"),
        (["--max_steps", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert message in refused(parse_finetune, arguments, capsys)


@pytest.mark.parametrize("more", [[], ["--data.sampler", "shuffle"]])
def test_a_value_where_settings_are_expected(more, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("data: 5\n")
    shown = refused(parse_finetune, ["--config_path", str(tmp_path / "mine.yaml"), *more], capsys)
    assert "data is 5: expected settings by name" in shown


def test_unknown_keys_of_a_yaml_file_name_the_file(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("data:\n  paking: true\n")
    with pytest.raises(SystemExit):
        parse_finetune(["--config_path", str(tmp_path / "mine.yaml")])
    assert "did you mean data.packing" in capsys.readouterr().err


def test_help_names_every_setting_at_once():
    done = forked.run(["recipes/finetune.py", "--processes", "2", "--help"])
    assert done.returncode == 0
    for word in ("--vision_backbone", "--data.on_bad_image", "full-finetune", "--lora.rank", "pad", "miniature.yaml"):
        assert word in done.stdout
    imported = "import sys; sys.argv = ['f', '--help']\nimport recipes.finetune\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True).stdout.strip() == "False"


IMAGES = ["--data.train", "miniature:64", "--data.validation", "miniature:64:1"]
PARSERS = {
    "align": parse_align,
    "mim": parse_mim,
    "classify": parse_classify,
    "probe": parse_probe,
    "evaluate": parse_evaluate,
    "reproduce": parse_reproduce,
    "serve": parse_serve,
    "chat": parse_chat,
    "app": parse_app,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_parses(path):
    kind = path.stem.split("-")[0]
    if path.name == "models.yaml":
        for name in named_models():
            assert parse_finetune(["--model", name, *DATA]).model == name
    elif path.name == "images.yaml":
        for recipe, presets in read_presets(path.name).items():
            given = ["--vision_backbone" if recipe == "classify" else "--teacher", "miniature", *IMAGES]
            for name in presets:
                assert PARSERS[recipe](["--model", name, *given]).model == name
    elif kind in PARSERS:
        fixed = kind == "reproduce" or "miniature" in path.name  # what it reads
        PARSERS[kind](["--config_path", str(path), *([] if fixed else IMAGES)])
    else:
        parse_finetune(["--config_path", str(path), *([] if path.name == "miniature.yaml" else DATA)])


def test_the_papers_alignment():
    """Section 4 of the paper: what is the same for all backbones, and the rates of small and of large ones."""
    base, large = (parse_align(["--model", f"clip-vit-{size}-aligned", *IMAGES]) for size in "bl")
    assert (base.epochs, base.global_batch_size, base.betas, base.weight_decay) == (5, 1024, [0.9, 0.95], 0.01)
    assert (base.max_grad_norm, base.decoder_blocks, base.data.crop_mode, base.decay_all) == (1.0, 2, "rkrc", True)
    assert (base.learning_rate, base.min_learning_rate) == (3e-4, 3e-5)
    assert (large.learning_rate, large.min_learning_rate) == (2e-4, 2e-5)
    assert parse_align(["--model", "in1k-vit-b-embed", *IMAGES]).epochs == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.train", ""], "no train images"),
        (["--data.crop_mode", "rkcr"], "rkrc or rkrr or rrc or none"),
        (["--ema_decay", "1"], "between 0 and 1"),
        (["--save_every_steps", "0"], "at least 1"),
        (["--global_batch_size", "0"], "more than 0"),
        (["--model", "clip-vit-b-alined"], "clip-vit-b-aligned"),
        (["--masks.keep_rate", "1"], "--masks.keep_ratio"),
        (
            ["--model", "clip-vit-b-mim"],
            "--teacher RUN, the folder of a run of `prismatic mim --model clip-vit-b`",
        ),
        (["--data.interpolation", "bicubc"], "null or bicubic or bilinear or random; did you mean bicubic"),
        (["--data.crop_scale", "0.8"], "--data.crop_scale is [0.8]: expected the least and the greatest"),
        (["--data.crop_scale", "1.0,0.8"], "expected the least and the greatest"),
        (["--data.crop_ratio", "0,1"], "--data.crop_ratio is [0.0, 1.0]"),
        (["--data.color_jitter", "-1"], "--data.color_jitter is -1.0: expected 0 or more, or null"),
        (["--data.random_erasing", "2"], "--data.random_erasing is 2.0: expected a probability"),
        (["--data.validation_crop", "1.1"], "--data.validation_crop is 1.1: expected 0.1 to 1"),
        (["--drop_path", "1"], "--drop_path is 1.0: expected 0 or more, below 1"),
        (["--mixup", "-1"], "--mixup is -1: expected 0 or more"),
        (["--image_size", "0"], "--image_size is 0: expected 1 or more"),
        (["--cutmix", "1", "--per_device_batch_size", "1"], "--global_batch_size must be 2 or more"),
    ],
)
def test_image_settings_that_make_no_sense(arguments, message, capsys):
    assert message in refused(parse_align, [*IMAGES, *arguments], capsys)


@pytest.mark.parametrize("parsed", [parse_finetune, parse_align])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "inf"], "--learning_rate is inf: expected a finite number"),
        (["--max_grad_norm", "nan"], "--max_grad_norm is nan: expected a finite number"),
        (["--betas", "0.9,inf"], "--betas is inf: expected a finite number"),
        (["--seed", "-1"], "--seed is -1: expected 0 to 4294967295"),
        (["--seed", "4294967296"], "--seed is 4294967296: expected 0 to 4294967295"),
    ],
)
def test_numbers_are_finite_and_seeds_fit(parsed, arguments, message, capsys):
    assert message in refused(parsed, arguments, capsys)
