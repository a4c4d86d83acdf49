"""Frozen LLMs in 4 and 8 bits: what is trained on them, what is saved, and what they cost."""

import os
from importlib.util import find_spec

import forked
import pytest
import torch
from accelerate import Accelerator
from golden_cases import ROOT
from rounded import round_to_4_bits
from torch import nn

import prismatic
from prismatic.models import quantize as quantizing
from prismatic.models.build import build, meta_config
from prismatic.models.load import start_stage
from prismatic.models.lora import linear_layers
from prismatic.models.quantize import parameter_count, quantize, quantized_bytes
from prismatic.models.stages import trained_and_frozen
from prismatic.planning import memory as plan
from prismatic.planning.fake_step import meta_model
from prismatic.training import loop
from recipes.config.finetune import parse_finetune
from recipes.config.plan import parse_plan
from recipes.finetune import main
from recipes.plan import make_plan

pytestmark = pytest.mark.usefixtures("any_precision")
PARTS = {"vision_backbone": "miniature-aligned", "llm": "miniature", "projector": "linear"}
SMALL = (
    "--vision_backbone miniature-aligned --projector linear --data.annotations miniature:16 --data.workers 0 "
    "--data.held_out_limit 1 --global_batch_size 4 --per_device_batch_size 4 --eval_tasks [] --precision fp32"
).split()
LIBRARIES = ROOT / ".venv" / "quantize"
there = find_spec("bitsandbytes") or (LIBRARIES / "bitsandbytes").is_dir()
needs_bitsandbytes = pytest.mark.skipif(not there, reason="bitsandbytes is not installed")


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    monkeypatch.syspath_prepend(LIBRARIES)


def half_of(layer, kind, device, dtype):
    """Stands in for a library that is not there: bfloat16, which is not exact either."""
    new = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device=device)
    new.weight.data, new.bias = layer.weight.data.bfloat16().float(), layer.bias
    return new.requires_grad_(False)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_blocks_are_quantised_and_nothing_else_is(kind):
    """What 4 bits change is what the library's own rounding of the weights changes; 8 bits round inputs, too."""
    full, processor = build(**PARTS)
    small, _ = build(**PARTS)
    names = linear_layers(small.llm)[0]
    quantize(small.llm, kind, Accelerator(cpu=True))
    now = dict(small.llm.named_modules())
    for name, module in full.llm.named_modules():
        if name in names:
            assert parameter_count(now[name].weight) == module.weight.numel()
            stored = now[name].weight.nbytes
            assert stored == module.weight.numel() * quantizing.BITS[kind] / 8
            assert stored <= quantized_bytes(module.weight.numel(), len(module.weight), kind) <= 1.1 * stored
        else:
            for one, two in zip(module.parameters(recurse=False), now[name].parameters(recurse=False), strict=True):
                assert torch.equal(one, two)
    sizes = ([trained + frozen for _, trained, frozen in trained_and_frozen(model)] for model in (small, full))
    assert next(sizes) == next(sizes)
    ids = torch.randint(5, len(processor.tokenizer), (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, found = (model(input_ids=ids).logits for model in (full, small))
        assert (found - exact).std() > 1e-4 * exact.std()
        if kind == "4bit":
            for name in names:
                round_to_4_bits(full.llm.get_submodule(name), compress_statistics=True)
            torch.testing.assert_close(found, full(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
        else:
            assert (found - exact).std() < 0.02 * exact.std()


@needs_bitsandbytes
@pytest.mark.parametrize("stage", ["lora", pytest.param("align", marks=pytest.mark.slow)])
def test_a_run_on_a_quantised_llm_leaves_a_whole_model(stage, tmp_path, capsys):
    """It is the one that was trained, but for the LLM, which is as it was; the step checkpoint is it, too."""
    arguments = ["--run_root", str(tmp_path), "--stage", stage, "--quantize", "4bit", "--max_steps", "3"]
    summary = main(parse_finetune([*SMALL, *arguments, "--run_id", "q", "--learning_rate", "1e-3"]))
    assert stage == "align" or summary["loss_last"] < summary["loss_first"]
    assert "LLM in 4 bits: " in capsys.readouterr().out
    model, _ = prismatic.load(tmp_path / "q")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    original = build(**PARTS)[0].state_dict()
    trained = {name for name, value in model.state_dict().items() if not torch.equal(value, original[name])}
    assert any(name.startswith("model.projector") for name in trained)
    assert any("language_model" in name for name in trained) == (stage == "lora")
    step = prismatic.load(tmp_path / "q" / "checkpoints" / "step-00000003")[0].state_dict()
    assert all(torch.equal(value, step[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@needs_bitsandbytes
def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    arguments = [
        *SMALL,
        "--run_root",
        str(tmp_path),
        "--stage",
        "lora",
        "--quantize",
        "4bit",
        "--save_every_steps",
        "1",
    ]
    main(parse_finetune([*arguments, "--run_id", "whole", "--max_steps", "3"]))
    real, calls = loop.accumulate, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 3 + 1:  # the first counts operations
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "accumulate", dies)
        main(parse_finetune([*arguments, "--run_id", "killed", "--max_steps", "3"]))
    main(parse_finetune([*arguments, "--run_id", "killed", "--max_steps", "3"]))
    one, two = (prismatic.load(tmp_path / name)[0].state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_libraries_are_tried_and_not_trusted(monkeypatch):
    """The second serves where the first is absent, fails or computes something else."""

    def absent(*args):
        raise ImportError

    def fails(*args):
        raise RuntimeError("no kernel\nfor this")

    def wrong(layer, *args):
        return nn.Linear(128, 192)

    device = torch.device("cpu")
    for other in (absent, fails, wrong):
        monkeypatch.setattr(quantizing, "_bitsandbytes", other)
        monkeypatch.setattr(quantizing, "_torchao", half_of)
        assert quantizing._working("8bit", device, torch.float32)[0] == "torchao"
    monkeypatch.setattr(quantizing, "_torchao", fails)
    with pytest.raises(
        ValueError, match="bitsandbytes computes something else .output .*% off.; torchao fails .*no kernel for"
    ):
        quantizing._working("8bit", device, torch.float32)


@pytest.mark.skipif(not (LIBRARIES / "torchao").is_dir(), reason="torchao is not installed")
def test_torchao_computes_8_bits():
    """In a process of its own: peft would look for it from now on."""
    code = "import torch; from prismatic.models import quantize as q; "
    code += "print(q._problem(q._torchao, '8bit', torch.device('cpu'), torch.float32))"
    done = forked.run(["-c", code], env=os.environ | {"PYTHONPATH": f"{LIBRARIES}"})
    assert done.stdout.splitlines()[-1] == "None", done.stderr[-2000:]


def test_features_are_never_integers():
    """A client may quantise all of a model, projector included: the dtype is that of the first floating-point part."""
    model, _ = build("miniature", "miniature", "gelu-mlp")
    pixels = torch.randn(1, 3, 48, 48)
    expected = model.get_image_features(pixels).pooler_output
    seen = []

    class Integers(nn.Linear):
        def forward(self, features):
            seen.append(features.dtype)
            return features @ self.weight.T.float() / 100 + self.bias

    for name, module in list(model.projector.named_modules()):
        if isinstance(module, nn.Linear):
            new = Integers(module.in_features, module.out_features)
            new.weight = nn.Parameter((module.weight * 100).round().to(torch.int8), requires_grad=False)
            new.bias = module.bias
            parent, _, child = name.rpartition(".")
            setattr(model.projector.get_submodule(parent) if parent else model.projector, child, new)
    found = model.get_image_features(pixels).pooler_output
    assert set(seen) == {torch.float32} and (found - expected).std() < 0.2 * expected.std()


@pytest.mark.parametrize(
    ("stage", "refused"), [("finetune", True), ("full-finetune", True), ("lora", False), ("align", False)]
)
def test_only_a_frozen_llm_is_quantised(stage, refused, capsys):
    arguments = ["--stage", stage, "--quantize", "4bit"]
    for parse in (parse_finetune, parse_plan):
        if refused:
            with pytest.raises(SystemExit):
                parse(arguments)
            assert f"needs a frozen LLM: --stage lora or align, not {stage}" in capsys.readouterr().err
        else:
            assert parse(arguments).quantize == "4bit"


LORA = {"rank": 16, "alpha": 32, "dropout": 0.0}


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_what_a_plan_saves_is_what_real_weights_do(kind):
    model, _ = start_stage(PARTS, "lora", LORA)
    modules = dict(model.get_base_model().llm.named_modules())
    frozen = [modules[n].weight for n in linear_layers(model.get_base_model().llm)[0] if "lora" not in n]
    saved = sum(w.numel() * 4 - quantized_bytes(w.numel(), len(w), kind) for w in frozen)
    options = {"lora": LORA, "precision": "fp32", "gradient_checkpointing": False}
    meta = meta_model(meta_config(**PARTS), "lora", **options)
    assert plan._quantized(meta, kind) == (saved, max(w.numel() for w in frozen))


@pytest.mark.slow
def test_the_plan_says_what_is_saved():
    argv = ["--stage", "lora", "--vision_backbone", "miniature-aligned"]
    full, small = (make_plan(parse_plan([*argv, "--quantize", kind])).memory for kind in ("null", "4bit"))
    assert full["parameters"] > small["parameters"] + 4 * small["dequantized matrix"]
    assert "dequantized matrix" not in full
