"""What requests for a chat completion may say."""

import json

import pytest
from PIL import Image
from served import message

from recipes.serving.refusal import Refusal
from recipes.serving.requests import read_request

BASIC = {"model": "miniature", "messages": [{"role": "user", "content": "What is there?"}]}
GREY = Image.new("RGB", (8, 8), "grey")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"store": True}, "store"),
        ({"max_token": 3}, "max_token"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "hi", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"messages": [message(GREY, role="system")]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x" * 999_000}] * 2}, "messages"),
    ],
)
def test_what_is_not_done_is_refused_by_name(given, param):
    with pytest.raises(Refusal) as found:
        read_request(json.dumps(BASIC | given).encode(), "miniature", 900)
    assert found.value.param == param and found.value.status == 400 and param.split("[")[0] in found.value.message


def test_what_says_nothing_new_is_ignored():
    neutral = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "metadata": {"a": "b"}}
    neutral |= {"store": False, "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "audio": None}
    answered = {"role": "assistant", "content": "red", "refusal": None, "annotations": [], "tool_calls": None}
    messages = [message("a"), answered, {"role": "user", "content": "b"}]
    found = read_request(json.dumps(BASIC | neutral | {"messages": messages}).encode(), "miniature", 900).request
    assert found.messages == [{"role": role, "content": text} for role, text in zip(
        ("user", "assistant", "user"), ("a", "red", "b"), strict=True)]  # fmt: skip
    assert (found.max_new_tokens, found.temperature, found.top_p, found.stop, found.seed) == (900, 0, 1, (), None)
