"""Every preset, as it is parsed, against what the reference trains with."""

import json

import pytest
from catalogue import MODELS
from golden_cases import golden_dir

from recipes.config.finetune import parse_finetune
from recipes.config.plan import parse_plan

FACTS = golden_dir().parent / "facts"
requires_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="the reference's settings are not there")
STRATEGIES = {"fsdp-shard-grad-op": "grad-op", "fsdp-full-shard": "full"}
DATA = {  # in whose names the reference's models say what they are trained on
    "-no-cotraining": "llava-multimodal",
    "llava-lvis4v-lrv": "llava-lvis4v-lrv",
    "llava-lvis4v": "llava-lvis4v",
    "llava-lrv": "llava-lrv",
    "-external": "llava-lvis4v-lrv",
}


def facts(name):
    return json.loads((FACTS / name).read_text())


def data_set(name):
    if name.startswith("prism-") and "controlled" not in name:
        return "llava-lvis4v-lrv"
    return next((found for part, found in DATA.items() if part in name), "llava-v15")


@requires_facts
@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_named_models_train_as_the_reference_does(stage):
    grid, sets = facts("model_grid.json"), {s["dataset_id"]: s for s in facts("training_datasets.json")}
    assert {model["model_id"] for model in grid["models"]} == MODELS.keys() and len(MODELS) == 68
    for model in grid["models"]:
        expected = grid["common"] | model
        name = model["model_id"]
        config = parse_finetune(["--model", name, *(["--stage", "align"] if stage == "align" else [])])
        full = stage == "finetune" and name.startswith("full-ft")
        assert config.stage == ("full-finetune" if full else stage)
        assert config.vision_backbone == model["vision_backbone_id"] and config.llm == model["llm_backbone_id"]
        assert config.projector == model["arch_specifier"].removeprefix("no-align+")
        assert config.image_resize_strategy == model["image_resize_strategy"]
        assert config.max_length == expected["llm_max_length"]
        for field in ("epochs", "max_steps", "global_batch_size", "per_device_batch_size", "learning_rate",
                      "weight_decay", "max_grad_norm", "warmup_ratio"):  # fmt: skip
            assert getattr(config, field) == expected[f"{stage}_{field}"], (name, field)
        assert config.sharding == STRATEGIES[expected[f"{stage}_train_strategy"]]
        assert config.min_learning_rate == 0  # the reference's cosine ends there
        assert config.gradient_checkpointing == expected["enable_gradient_checkpointing"]
        assert config.precision == ("bf16" if expected["enable_mixed_precision_training"] else "fp32")
        assert config.reduce_dtype == ("float32" if expected["reduce_in_full_precision"] else "bfloat16")
        data = sets[data_set(name)]
        assert config.data.annotations == f"{data['dataset_root_dir']}/{data[f'{stage}_stage_components'][0]}"


@pytest.mark.parametrize("given", [["--stage", "align"], ["--stage=align"], ["--config_path", "stage.yaml"]])
def test_what_is_given_goes_over_the_stage_and_that_over_the_preset(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.yaml").write_text("stage: align\ndata: {workers: 9}\nlora: {rank: 3}\n")
    arguments = ["--model", "train-1.25-epochs+7b", *given, "--weight_decay", "0.5", "--data.sampler", "shuffle"]
    config = parse_finetune(arguments)
    assert (config.stage, config.global_batch_size, config.max_steps, config.weight_decay) == ("align", 256, None, 0.5)
    assert config.data.sampler == "shuffle" and config.data.annotations.endswith("chat.json")
    assert (config.data.workers, config.lora.rank) == ((9, 3) if given[0] == "--config_path" else (4, 16))
    assert parse_plan(arguments).learning_rate == 1e-3
    assert parse_finetune([*arguments, "--stage", "finetune"]).global_batch_size == 128


@pytest.mark.parametrize("text", ["data: {}", "data:", "data: null\nlora:"])
def test_what_is_said_of_nothing_changes_nothing(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    given = ["--model", "prism-clip+7b", "--config_path", str(tmp_path / "c.yaml")]
    one, other = (vars(parse_finetune(arguments)) for arguments in (given, given[:2]))
    assert one == other
