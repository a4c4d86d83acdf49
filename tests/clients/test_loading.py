"""Options of `from_pretrained`: devices, precision in few bits, attention."""

import sys
from importlib.util import find_spec

import pytest
import torch
from golden_cases import ROOT
from PIL import Image
from rounded import round_to_4_bits
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import is_torchao_available

import prismatic
from eval.engine import Question
from eval.generate_engine import PlainEngine
from eval.task import Generate
from prismatic.miniature.scenes import scene

PLACE = ROOT / ".venv" / "quantize"
ASKED = [
    "What color is the cross?",
    "How many objects are there?",
    "Where is the blue square?",
    "Which way is the yellow cross from the red cross?",
]
there = all(find_spec(name) or (PLACE / name).is_dir() for name in ("bitsandbytes", "torchao"))
needs_libraries = pytest.mark.skipif(not there, reason="bitsandbytes or torchao is not installed")


def answers(model, processor, pictures):
    engine = PlainEngine(model, processor, 10)
    ready = [engine.prepare(Image.fromarray(scene(77, number).image)) for number in range(pictures)]
    asked = [Question(number, text, Generate(12)) for number in range(pictures) for text in ASKED]
    return [answer.text for answer in engine.answer(ready, asked)]


def quantization(name):
    if name == "torchao int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if name == "8 bits":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@needs_libraries
@pytest.mark.parametrize(
    "name",
    ["8 bits", "4 bits", pytest.param("torchao int8", marks=pytest.mark.slow)],
)
def test_quantised_models_say_the_same(name, folder, monkeypatch):
    """95 % of 40 answers, with 4 bits as where weights are rounded to them; of 200 with torchao, which imports long."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLACE)])
    is_torchao_available.cache_clear()
    model, processor = prismatic.load(folder)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    small, _ = prismatic.load(folder, quantization_config=quantization(name), device_map="cpu")
    changed = {n for n, m in small.named_modules() if n in linear and type(m) is not torch.nn.Linear}
    changed |= {n for n, m in small.named_modules() if n in linear and type(m.weight.data) is not torch.Tensor}
    assert changed == {name for name in linear if "language_model" in name}, "the LLM but its head"
    if name == "4 bits":
        for layer in linear & changed:
            round_to_4_bits(model.get_submodule(layer))
    count = 50 if "torchao" in name else 10
    one, two = answers(model, processor, count), answers(small, processor, count)
    assert sum(a == b for a, b in zip(one, two, strict=True)) >= 0.95 * len(one)


def test_weights_on_a_disk(folder, tmp_path):
    """Hooks of accelerate fetch them when they are computed with."""
    places = dict.fromkeys(("model.vision_backbone", "model.projector"), "cpu")
    places |= dict.fromkeys(("model.language_model", "lm_head"), "disk")
    model = AutoModelForImageTextToText.from_pretrained(folder, device_map=places, offload_folder=tmp_path / "disk")
    assert next(model.model.language_model.parameters()).is_meta
    whole, processor = prismatic.load(folder)
    assert answers(model, processor, 1) == answers(whole, processor, 1)


@needs_libraries
def test_a_quantised_model_is_saved_and_loaded(folder, tmp_path, monkeypatch):
    """Asked for by a dict, too, and by a config that stays as it was."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLACE)])
    config = quantization("8 bits")
    kept = config.to_dict()
    model, processor = prismatic.load(folder, quantization_config=config, device_map="cpu")
    assert config.to_dict() == kept
    same, _ = prismatic.load(folder, quantization_config=config.to_dict(), device_map="cpu")
    part = AutoModel.from_pretrained(folder, quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "q8"), processor.save_pretrained(tmp_path / "q8")
    again, _ = prismatic.load(tmp_path / "q8", device_map="cpu")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = model(input_ids=ids)
        for other in (same, again):
            torch.testing.assert_close(other(input_ids=ids).logits, expected.logits)
    for whole in (same, again, part):
        names = {name for name, module in whole.named_modules() if type(module).__name__ == "Linear8bitLt"}
        assert names and all("language_model" in name for name in names)


def test_whole_models_take_options(folder):
    model, _ = prismatic.load(folder, device_map={"": "cpu"}, attn_implementation="eager", dtype=torch.bfloat16)
    assert model.config.text_config._attn_implementation == "eager"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
