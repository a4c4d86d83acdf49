import sys

import pytest
from golden_cases import load_json, requires_golden
from small_tokenizers import CHATML, byte_level
from transformers.utils.chat_template_utils import render_jinja_template

from prismatic.text import trial
from prismatic.text.prompts import chat_template, prompt_styles, to_messages
from prismatic.text.rendering import render_prompt, render_turns

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A cat."}


@requires_golden
def test_styles_match_the_reference():
    cases = load_json("B_prismatic/B2_prompts/prompts.json")
    assert {case["builder"] for case in cases} == set(prompt_styles())
    for case in cases:
        template = chat_template(case["builder"])
        conversation = [{"role": "system", "content": case["system_prompt"]}] if case["system_prompt"] else []
        for turn in case["turns"]:
            is_question = turn["role"] == "human"
            if is_question:
                # The reference looks ahead with the message as it is, and forgets phi-2's opening before a first one.
                history = to_messages([*conversation, {"role": "user", "content": ""}])
                history[-1]["content"] = turn["message"]
                ahead = render_jinja_template([history], chat_template=template)[0][0].rstrip()
                opening = "<|endoftext|>"
                assert ahead.removeprefix(opening) == turn["get_potential_prompt_before"].removeprefix(opening)
            conversation.append({"from": turn["role"], "value": turn["message"]})
            last = render_turns(conversation, template)[-1]
            # The space between question and answer is the reference's question's, and our answer's.
            assert (last + " " if is_question else last.removeprefix(" ")) == turn["add_turn_return"], case["builder"]
            assert render_prompt(conversation, template) == turn["get_prompt_after"]
            assert "".join(render_turns(conversation, template)) == turn["get_prompt_after"]


def test_unknown_style_names_the_closest():
    with pytest.raises(ValueError, match="vicuna-v1.5"):
        chat_template("vicuna")


@pytest.mark.parametrize("style", prompt_styles())
def test_parts_are_written_as_their_text(style):
    text = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    parts = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}]},
    ]

    def render(messages):
        return render_jinja_template([messages], chat_template=chat_template(style))[0]

    assert render(parts) == render(text)


def test_end_token_is_the_tokenizers():
    tokenizer = byte_level("<|endoftext|>", "<|endoftext|>")
    tokenizer.chat_template = chat_template("pure")
    assert render_turns([QUESTION, ANSWER], tokenizer) == ["In: What?\nOut:", " A cat.<|endoftext|>"]


def test_contents_are_cleaned():
    conversation = [
        {"from": "human", "value": " <ima<image>ge>\nWhat? <image>"},
        {"from": "gpt", "value": "<image> "},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "\nA <image>cat. "},
    ]
    assert [message["content"] for message in to_messages(conversation)] == ["What?", " ", "", "A cat."]


def test_both_vocabularies_of_roles_mean_the_same():
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    assert to_messages([QUESTION, ANSWER]) == messages == to_messages(messages)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "at least one turn"),
        ("What?", "at least one turn"),
        ([ANSWER], "turn 0 is the assistant's"),
        ([QUESTION, QUESTION], "turn 1 is the user's"),
        ([QUESTION, ANSWER, ANSWER], "turn 2 is the assistant's"),
        ([{"role": "system", "content": "Be kind."}], "system message only"),
        ([QUESTION, {"role": "system", "content": "Be kind."}], "turn 1 is the system's"),
        ([QUESTION, {"from": "bot", "value": "A cat."}], "turn 1: unknown role 'bot'"),
        ([QUESTION, {"from": "gpt", "value": 3}], r"turn 1 \(gpt\): expected text, got 3"),
        ([QUESTION, {"from": "gpt"}], "expected text, got None"),
        ([QUESTION, "A cat."], "turn 1: expected an object"),
    ],
)
def test_malformed_conversations_are_refused(conversation, message):
    with pytest.raises(ValueError, match=message):
        to_messages(conversation)


def test_turns_of_a_foreign_template_make_up_its_text():
    tokenizer = byte_level("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = CHATML
    conversation = [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER, {"from": "human", "value": "Why?"}]
    for length in (2, 3, 4):
        messages = to_messages(conversation[:length])
        is_question = messages[-1]["role"] == "user"
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_question)
        assert "".join(render_turns(messages, tokenizer)) == text == render_prompt(messages, tokenizer)
    assert render_turns(conversation, tokenizer)[1] == "A cat.<|im_end|>\n"


def test_templates_that_drop_or_refuse_turns_are_told():
    only_last = "{{ messages[-1].role + ': ' + messages[-1].content }}"
    with pytest.raises(ValueError, match="does not write the content of a turn of the assistant"):
        render_turns([QUESTION, ANSWER, QUESTION], only_last)
    with pytest.raises(ValueError, match="the conversation has 1,001 turns, expected at most 1,000"):
        render_turns([QUESTION, ANSWER] * 500 + [QUESTION], chat_template("pure"))
    with pytest.raises(ValueError, match="no system please"):
        render_prompt([QUESTION], "{{ raise_exception('no system please') }}")


def nested(depth):
    return "<ima" * depth + "<image>" + "ge>" * depth


@pytest.mark.parametrize(
    "text", ["", "<image>", "a<image>b", "<image><image>", nested(1), nested(7), "<ima<image>", "<image"]
)
def test_marks_are_taken_out_until_none_is_left(text):
    expected = text
    while "<image>" in expected:
        expected = expected.replace("<image>", "")
    assert to_messages([{"role": "user", "content": f"a {text} b"}])[0]["content"] == f"a {expected} b"


def test_taking_marks_out_takes_linear_time():
    """Twice the text, twice the operations: counted, not timed."""

    def operations(text):
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            count += event == "line"
            return trace

        sys.settrace(trace)
        try:
            to_messages([{"role": "user", "content": text}])
        finally:
            sys.settrace(None)
        return count

    one, two = operations(nested(2000)), operations(nested(4000))
    assert two < 2.1 * one


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[0].content + 1 }}", "{{ [1]|first(2) }}"])
def test_whatever_a_template_raises_is_one_line(template):
    with pytest.raises(ValueError, match="the chat template (fails on|refuses) the conversation") as error:
        render_prompt([QUESTION], template)
    assert "\n" not in str(error.value)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='ab') %}{% for a in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"


@pytest.mark.parametrize(
    "template", [LOOPS, LOOPS.replace("BODY", "x"), DOUBLING, "{{ 'a' * 1000001 }}", "{{ 'a' * 10 ** 20 }}"]
)
def test_templates_that_take_too_much_are_refused(template, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 1)
    with pytest.raises(ValueError, match="the chat template is refused: of three short messages it makes more than"):
        render_prompt([QUESTION], template)
