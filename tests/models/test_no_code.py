"""Model folders and settings that name Python code are refused, and none of it runs; nobody is asked."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

import prismatic
from eval.generate_engine import load_engine
from prismatic.models.build import build
from prismatic.models.llm import llm_config, load_llm, load_tokenizer
from prismatic.models.load import BUNDLED
from prismatic.models.lora import PARTS_FILE, add_lora
from prismatic.models.reject_remote_code import FILES, check_parts_named, refuse_code
from recipes.config.finetune import parse_finetune

LLM = Path(prismatic.__file__).parent / "miniature" / "assets" / "llm"
PLANTED = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast as Tokenizer
class Config(LlamaConfig):
    model_type = "planted"
class Model(LlamaForCausalLM):
    config_class = Config
"""
AUTO_MAP = {
    "AutoConfig": "planted.Config",
    "AutoModelForCausalLM": "planted.Model",
    "AutoModelForImageTextToText": "planted.Model",
    "AutoTokenizer": [None, "planted.Tokenizer"],
    "AutoProcessor": "planted.Processor",
    "AutoImageProcessor": "planted.Processor",
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that planted code would make; whoever asks on the terminal is told yes."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    marker = tmp_path / "marker"
    yield marker
    assert not marker.exists() and not asked


def plant(source: Path, folder: Path, marker: Path, file: str, **entries) -> Path:
    shutil.copytree(source, folder)
    (folder / "planted.py").write_text(PLANTED.format(marker=str(marker)))
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(content | entries))
    return folder


@pytest.mark.parametrize("entries", [{}, {"model_type": "planted"}])
@pytest.mark.parametrize("read", [load_llm, load_tokenizer, llm_config])
def test_llm_folders(entries, read, marker, tmp_path):
    folder = plant(LLM, tmp_path / "llm", marker, "config.json", auto_map=AUTO_MAP, **entries)
    with pytest.raises(ValueError, match=r"config\.json is refused: its entry 'auto_map' .*planted.*Nothing was run"):
        read(str(folder))
    with pytest.raises(ValueError, match="is refused: its entry 'auto_map'"):
        build("miniature", str(folder), "linear")


def test_the_trap_works(marker, tmp_path):
    from transformers import AutoConfig

    folder = plant(LLM, tmp_path / "llm", tmp_path / "other", "config.json", auto_map=AUTO_MAP, model_type="planted")
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["saved", "run"])
@pytest.mark.parametrize("file", FILES)
def test_vlm_folders(file, place, marker, tmp_path):
    run = tmp_path / "model"
    folder = run / "checkpoints" / "epoch-01" if place == "run" else run
    plant(BUNDLED["miniature"], folder, marker, file, nested=[{"auto_map": AUTO_MAP}], tokenizer_class="Planted")
    message = rf"{file} is refused: its entry 'auto_map' names Python code"
    with pytest.raises(ValueError, match=message):
        prismatic.load(run)
    with pytest.raises(ValueError, match=message):
        load_engine(str(run), dtype=torch.float32, device="cpu", batch_size=1)


def adapters(folder: Path, **parts) -> Path:
    model, processor = build("miniature", "miniature", "linear")
    add_lora(model, rank=2, alpha=2, dropout=0.0, targets=["q_proj"]).save_pretrained(folder)
    processor.save_pretrained(folder)
    good = {"vision_backbone": "miniature", "llm": "miniature", "projector": "linear", "image_size": None}
    (folder / PARTS_FILE).write_text(json.dumps(good | parts))
    return folder


def test_adapter_folders(marker, tmp_path):
    folder = adapters(tmp_path / "run")
    prismatic.load(folder)
    for parts, message in (
        ({"plugins": ["planted"]}, "'plugins' is ['planted'], expected nothing but vision_backbone, llm, "),
        ({"dtype": "os.system"}, "'dtype' is 'os.system', expected nothing but"),
        ({"llm": {"auto_map": AUTO_MAP}}, "'llm' is {'auto_map': {"),
        ({"image_size": "64"}, "'image_size' is '64', expected pixels"),
        ({"init_from": str(folder)}, "leads back to the same adapters"),
        (["init_from"], "holds a list, expected an object"),
        ("[" * 9999, f"{PARTS_FILE} is not valid JSON"),
    ):
        good = {"vision_backbone": "miniature", "llm": "miniature", "projector": "linear"}
        text = parts if isinstance(parts, str) else json.dumps(parts if isinstance(parts, list) else good | parts)
        (folder / PARTS_FILE).write_text(text)
        with pytest.raises(ValueError) as error:
            prismatic.load(folder)
        assert message in str(error.value)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"megatron_config": {"a": 1}, "megatron_core": "planted"})
    )
    with pytest.raises(ValueError, match="adapter_config.json is refused: its entry 'megatron_config'"):
        prismatic.load(folder)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def test_pickled_weights_in_place_of_safetensors(marker, tmp_path):
    content = {"x": Malicious(marker)}
    for source, name in ((BUNDLED["miniature"], "pytorch_model.bin"), (LLM, "pytorch_model.bin")):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / name)
        with pytest.raises(ValueError, match="refused; nothing was run" if source == LLM else r"or no \*.safetensors"):
            prismatic.load(folder) if source != LLM else load_llm(str(folder))
    folder = adapters(tmp_path / "run")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="or no safetensors of them"):
        prismatic.load(folder)


def test_a_run_of_others_imports_no_plugins(marker, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(BUNDLED["miniature"], run / "checkpoints" / "epoch-01")
    for place in (run, run / "checkpoints" / "epoch-01"):
        (place / "config.yaml").write_text("plugins: [planted]\nseed: !!python/object/apply:planted.run []\n")
        (place / "planted.py").write_text(PLANTED.format(marker=str(marker)))
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "path", [str(run), *sys.path])
    prismatic.load(run)
    load_engine(str(run), dtype=torch.float32, device="cpu", batch_size=1)
    assert "planted" not in sys.modules


def test_chat_templates_reach_no_objects(marker, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED["miniature"], folder)
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    (folder / "chat_template.jinja").write_text(escape)
    _, processor = prismatic.load(folder)
    with pytest.raises(Exception, match="unsafe|SecurityError|undefined"):
        processor.tokenizer.chat_template = escape
        processor.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['touch MARKER']", "python/object/apply:os.system"),
        ("seed: !!python/object/apply:os.system ['touch MARKER']", "python/object/apply:os.system"),
        ("seed: !!python/object/new:os.system ['touch MARKER']", "python/object/new:os.system"),
        ("plugins: [!!python/module:planted '']", "python/module:planted"),
        ("llm: !!python/name:os.system", "python/name:os.system"),
        ("llm: !include /etc/passwd", "'!include'"),
        ("&a [*a]", "expected settings by name"),
        ("lora: &a {rank: 1, x: *a}", "refers to itself"),
        (LAUGHS, "holds more than 10,000 values"),
        ("model: [1]", "expected a name"),
        ("seed: " + "[" * 5000, "expected YAML of plain values"),
    ],
)
def test_settings_in_yaml(text, message, marker, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(text.replace("MARKER", str(marker)))
    with pytest.raises(SystemExit) as exit:
        parse_finetune(["--config_path", str(tmp_path / "config.yaml")])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and message in said and said.startswith("error: ") and said.count("\n") == 1


def test_what_is_no_code_is_left_alone(tmp_path):
    assert refuse_code(BUNDLED["miniature"]) == BUNDLED["miniature"] and refuse_code(tmp_path) == tmp_path
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": None, "a": [{"model_type": "auto_map"}]}))
    refuse_code(tmp_path)
    parts = {"llm": "a", "image_size": 64, "vision_backbone": None}
    assert check_parts_named(parts, Path("x")) == parts
    (tmp_path / "config.json").write_text("[" * os.sysconf("SC_PAGE_SIZE") * 4)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        refuse_code(tmp_path)
