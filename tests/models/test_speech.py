"""Prompt styles of one's own, and the tokens that answers end in."""

import json

import pytest
import torch
from small_tokenizers import CHATML, byte_level, byte_level_with
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import prismatic
from prismatic.models.build import build
from prismatic.models.llm import load_tokenizer
from prismatic.models.load import start
from prismatic.text import prompts
from prismatic.text.conversations import encode_prompt, option_token_ids, tokenize_conversation
from prismatic.text.speech import style_of, template_of

ASKED = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes"}]
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start>' + ('model' if m.role == 'assistant' else m.role) + '\n' + "
    "m.content + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)


def write(folder, tokenizer, stops=None):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if stops:
        GenerationConfig(eos_token_id=stops).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("template", ["chatml", "gemma", "none"])
def test_generation_stops_where_trained_answers_end(template, tmp_path):
    """At the LLM's own end tokens and the tokenizer's, too; and still after saving."""
    tokenizer = byte_level_with(["<|im_start|>", "<|im_end|>", "<start>", "<end>", "<other>"])
    tokenizer.chat_template = {"chatml": CHATML, "gemma": GEMMA, "none": None}[template]
    other = tokenizer.convert_tokens_to_ids("<other>")
    model, processor = build("miniature", write(tmp_path / "llm", tokenizer, [other]), "linear")
    _, labels = tokenize_conversation(ASKED, processor.tokenizer, 100)
    end = {"chatml": "<|im_end|>", "gemma": "<end>", "none": "</s>"}[template]
    last = [label for label in labels if label >= 0][-1]
    assert processor.tokenizer.convert_ids_to_tokens(last) == end
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, other, last}
    model.save_pretrained(tmp_path / "vlm"), processor.save_pretrained(tmp_path / "vlm")
    again, _ = prismatic.load(tmp_path / "vlm")
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("around", ["<s> $A </s>", "$A </s>"])
def test_a_post_processor_puts_bos_at_most_around_a_prompt(around, tmp_path):
    tokenizer = byte_level_with([])
    special = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=special)
    model, processor = build("miniature", write(tmp_path / "llm", tokenizer), "linear")
    bos = [tokenizer.bos_token_id] * around.startswith("<s>")
    words = tokenizer("In: Is it?\nOut:", add_special_tokens=False)["input_ids"]
    processor.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = processor(text="In: Is it?\nOut:")["input_ids"][0].tolist()
    assert asked == encode_prompt("Is it?", processor.tokenizer) == encode_prompt("Is it?", again) == bos + words
    ids, labels = tokenize_conversation(ASKED, processor.tokenizer, 100)
    assert ids[: len(asked)] == asked and ids.count(tokenizer.eos_token_id) == 1 and labels[-1] == ids[-1]
    assert all(option_token_ids(processor.tokenizer, ["Yes", "No"]))


def test_styles_are_names_files_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "_STYLES", dict(prompts._STYLES))
    (tmp_path / "mine.jinja").write_text(GEMMA)
    assert template_of("auto") is None and template_of(str(tmp_path / "mine.jinja")) == GEMMA == template_of(GEMMA)
    assert template_of("{% generation %}") == "{% generation %}" and template_of("{{ messages }}") == "{{ messages }}"
    for style, message in (("vicuna", "did you mean vicuna-v1.5"), ("none.jinja", "none.jinja cannot be read")):
        with pytest.raises(ValueError, match=message):
            template_of(style)
    prompts.register_prompt_style("mine", GEMMA), prompts.register_prompt_style("mine", GEMMA)
    with pytest.raises(ValueError, match="'mine' already exists: choose another name"):
        prompts.register_prompt_style("mine", CHATML)
    tokenizer = byte_level_with(["<start>", "<end>"])
    assert style_of(load_tokenizer(write(tmp_path / "llm", tokenizer))) == "pure"
    tokenizer.chat_template = CHATML
    llm = write(tmp_path / "llm", tokenizer)
    assert style_of(load_tokenizer(llm)) == "its own" and style_of(load_tokenizer(llm, "mine")) == "mine"


def test_a_model_that_goes_on_can_be_spoken_to_otherwise(tmp_path):
    model, processor = build("miniature", write(tmp_path / "llm", byte_level_with(["<start>", "<end>"])), "linear")
    model.save_pretrained(tmp_path / "vlm"), processor.save_pretrained(tmp_path / "vlm")
    model, processor = start(str(tmp_path / "vlm"), prompt_style=GEMMA)
    end = processor.tokenizer.convert_tokens_to_ids("<end>")
    assert processor.chat_template == processor.tokenizer.chat_template == GEMMA
    assert model.generation_config.eos_token_id == [byte_level("<s>", "</s>").eos_token_id, end]
    processor.save_pretrained(tmp_path / "saved")
    assert "<start>" in (tmp_path / "saved" / "chat_template.jinja").read_text()
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def test_a_space_between_a_role_and_an_answer_is_the_answers():
    """Else the prompt would end in a token that training joins with the answer, and no option could be scored."""
    processor = prismatic.build("miniature", "miniature", "linear")[1]
    processor.tokenizer.chat_template = "{% for m in messages %}{{ 'QQQ ' ~ m['content'] ~ ' ZZZ' }}{% endfor %}"
    row, _ = tokenize_conversation(ASKED, processor.tokenizer, 100)
    prompt = encode_prompt(ASKED[0]["value"], processor.tokenizer)
    assert row[: len(prompt)] == prompt
    assert all(option_token_ids(processor.tokenizer, ["True", "False"]))
