"""Real chat templates, which the package trl ships as files: what they train is what they are asked and scored by."""

import re
import sys
from pathlib import Path

import pytest
from small_tokenizers import byte_level_with

from prismatic.text.conversations import encode_prompt, tokenize_conversation
from prismatic.text.rendering import render_prompt, write_turns

FILES = sorted((Path(sys.prefix) / "templates" / "trl" / "chat_templates").glob("*.jinja"))
FILES = [file for file in FILES if not file.stem.endswith("_training")]
CONTROL = re.compile(r"<[|｜]?[A-Za-z_▁/][^<>\s'\"{]{0,38}?[|｜]?>|\[/?[A-Z_]+\]")
TURNS = [{"role": "user", "content": "What color?"}, {"role": "assistant", "content": "red"},
         {"role": "user", "content": "And that one?"}, {"role": "assistant", "content": "It is blue."}]  # fmt: skip

pytestmark = pytest.mark.skipif(not FILES, reason="no package trl: `make test` fetches it")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def tokenizer(request):
    """A small tokenizer with the template, and all that it uses as control tokens."""
    template = request.param.read_text()
    tokenizer = byte_level_with(sorted({"<s>", "</s>", *CONTROL.findall(template)}))
    tokenizer.chat_template = template
    return tokenizer


def test_there_are_many():
    assert len(FILES) > 30


def test_several_turns_train_what_is_asked(tokenizer):
    ids, labels = tokenize_conversation(TURNS, tokenizer, 5000)
    said = []
    for end in (1, 3):
        asked = tokenize_conversation(TURNS[:end], tokenizer, 5000)[0]
        row, answers = tokenize_conversation(TURNS[: end + 1], tokenizer, 5000)
        assert ids[: len(asked)] == row[: len(asked)] == asked
        said.append([label for label in answers[len(asked) :] if label >= 0])
        assert row[len(asked) :][: len(said[-1])] == said[-1], "from the prompt on, without a gap"
        assert tokenizer.decode(said[-1], skip_special_tokens=True).strip() == TURNS[end]["content"]
        assert said[-1][-1] in tokenizer.added_tokens_decoder, "it ends in a control token"
    assert encode_prompt("What color?", tokenizer) == tokenize_conversation(TURNS[:1], tokenizer, 5000)[0]
    assert [label for label in labels if label >= 0][-len(said[1]) :] == said[1]


def test_a_prompt_is_what_transformers_makes_of_it(tokenizer):
    """But for the thoughts that a template writes before an answer, and dates, which are always the same one."""
    prompt = render_prompt(TURNS[:1], tokenizer)
    if "strftime_now" in tokenizer.chat_template:
        assert "2024" in prompt
        return
    options = {"add_generation_prompt": True, "enable_thinking": False, "tokenize": False}
    for content in ("What color?", [{"type": "text", "text": "What color?"}]):
        try:
            theirs = tokenizer.apply_chat_template([{"role": "user", "content": content}], **options)
        except Exception:  # of a template that takes contents of the other kind
            continue
        if "What color?" in theirs:
            break
    assert prompt.startswith(theirs) and len(prompt) - len(theirs) < 40


def test_words_are_written_as_they_are(tokenizer):
    words = [{"role": "user", "content": "  {{ 1 }} <think> A\n\n"}, {"role": "assistant", "content": "x </think> y"}]
    question, answer = write_turns(words, tokenizer)
    assert question.text[slice(*question.contents[-1])] == "{{ 1 }} <think> A"
    assert answer.text[slice(*answer.contents[0])] == "x </think> y"
