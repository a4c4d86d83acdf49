"""The body of a request for a chat completion, read strictly: what this server cannot do is refused by name."""

import json
from dataclasses import dataclass
from typing import Any

from eval.streaming import Request
from recipes.serving.images import read_images
from recipes.serving.refusal import Refusal
from vision_backbones.names import suggest

MOST_TEXT = 1_000_000  # characters; no context holds more, and tokenizing takes time
MOST_VALUES = 200_000  # in a body: reading millions of them would keep all other threads waiting
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
READ = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "stream",
    "stream_options",
)  # fmt: skip
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key")  # about a request: no answer depends on them
NEUTRAL: dict[str, tuple] = {  # what others may be: they say then what would be done anyway
    "n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "store": (False,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "service_tier": ("auto", "default"), "audio": (), "prediction": (),
    "reasoning_effort": ("none",), "verbosity": (), "web_search_options": (),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a request asks the engine, and how the answer is sent."""

    request: Request
    stream: bool
    include_usage: bool


def read_request(body: bytes, name: str, longest: int) -> Asked:
    """A request for a chat completion, its images decoded.

    Args:
        body: JSON.
        name: of the only model that there is.
        longest: answer in tokens; what asks for a longer one, or does not say, gets this.

    Raises:
        Refusal: it is malformed, or asks for what this server does not do.
    """
    if sum(body.count(mark) for mark in b"[{,") > MOST_VALUES:
        raise Refusal(f"the body holds more than {MOST_VALUES:,} values")
    try:
        try:
            given = json.loads(body)
        except ValueError as error:
            raise Refusal(f"the body is no JSON: {error}") from None
        return _read(given, name, longest)
    except RecursionError:
        raise Refusal("the body is nested too deeply") from None
    except UnicodeEncodeError:
        raise Refusal("a text of the messages holds half of a surrogate pair", "messages") from None


def _read(given: Any, name: str, longest: int) -> Asked:
    if not isinstance(given, dict):
        raise Refusal(f"the body is {_shown(given)}: expected a JSON object with model and messages")
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        if key in NEUTRAL and value not in NEUTRAL[key]:
            only = "".join(f", or send {json.dumps(neutral)}" for neutral in NEUTRAL[key][:1])
            raise Refusal(f"{key} is {_shown(value)}, which this server does not do: leave it out{only}", key)
        if key not in (*READ, *LABELS, *NEUTRAL):
            raise Refusal(f"unknown parameter {_shown(key)}: {suggest(key, READ)}", key)
    if "model" not in given:
        raise Refusal(f"no model is named: send {name!r}", "model")
    if given["model"] != name:
        message = f"there is no model {_shown(given['model'])}: this server has {name!r}"
        raise Refusal(message, "model", 404, "model_not_found")
    messages, urls = _messages(given.get("messages"))
    stream = _boolean(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or ("stream_options" in given and not stream):
        raise Refusal("stream_options is an object such as {\"include_usage\": true}, and goes with stream: true",
                      "stream_options")  # fmt: skip
    request = Request(
        messages=messages,
        images=read_images(urls),
        max_new_tokens=_new_tokens(given, longest),
        temperature=_number(given, "temperature", 0, 2, 0.0),
        top_p=_number(given, "top_p", 1e-6, 1, 1.0),
        stop=_stop(given.get("stop", [])),
        seed=_whole(given, "seed", -(2**63), 2**63 - 1) if "seed" in given else None,
    )
    return Asked(request, stream, _boolean(options, "include_usage"))


def _messages(given: Any) -> tuple[list[dict], dict[str, str]]:
    """Messages of text alone, and the URLs of images by their places in the request."""
    if not isinstance(given, list) or not given:
        raise Refusal(f"messages is {_shown(given)}: expected a list that ends with a message of the user", "messages")
    messages, urls, length = [], {}, 0
    for number, message in enumerate(given):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            raise Refusal(f"{place} is {_shown(message)}: expected an object with role and content", place)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise Refusal(f"{place}.role is {_shown(role)}: expected {', '.join(ROLES)}", f"{place}.role")
        for key, value in message.items():
            if key not in ("role", "content") and value not in (None, [], ""):
                raise Refusal(f"{place} has {_shown(key)}: this server reads role and content alone", f"{place}.{key}")
        text, its = _content(message.get("content"), f"{place}.content")
        if its and role != "user":
            raise Refusal(f"{place} has an image and the role {role}: only users send images", place)
        messages.append({"role": ROLES[role], "content": text})
        urls |= its
        length += len(text)
    if length > MOST_TEXT:
        raise Refusal(f"the messages have {length:,} characters, expected at most {MOST_TEXT:,}", "messages")
    return messages, urls


def _content(given: Any, place: str) -> tuple[str, dict[str, str]]:
    """The text of a message, its parts joined, and the URLs of its images by their places."""
    texts, urls = [], {}
    for number, part in enumerate([{"type": "text", "text": given}] if isinstance(given, str) else _list(given, place)):
        where = f"{place}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            part["text"].encode()  # raises where half of a surrogate pair stands alone
            texts.append(part["text"])
        elif kind == "image_url":
            holder = part.get("image_url")
            if not isinstance(holder, dict) or not isinstance(holder.get("url"), str):
                raise Refusal(f'{where}.image_url is {_shown(holder)}: expected {{"url": "data:..."}}', where)
            urls[f"{where}.image_url.url"] = holder["url"]
        else:
            message = f'{where} is {_shown(part)}: expected {{"type": "text", "text": ...}} or '
            raise Refusal(message + '{"type": "image_url", "image_url": {"url": "data:..."}}', where)
    return "".join(texts), urls


def _list(given: Any, place: str) -> list:
    if not isinstance(given, list) or not given:
        raise Refusal(f"{place} is {_shown(given)}: expected text, or a list of parts", place)
    return given


def _new_tokens(given: dict, longest: int) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(names) > 1:
        raise Refusal("max_tokens and max_completion_tokens mean the same: send one of them", "max_tokens")
    return min(_whole(given, names[0], 1, 2**31), longest) if names else longest


def _stop(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(text, str) and text for text in texts):
        raise Refusal(f"stop is {_shown(given)}: expected a text, or a list of up to 4, none of them empty", "stop")
    return tuple(texts)


def _number(given: dict, name: str, low: float, high: float, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refusal(f"{name} is {_shown(value)}: expected a number from {low:g} to {high:g}", name)
    return float(value)


def _whole(given: dict, name: str, low: int, high: int) -> int:
    value = given[name]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Refusal(f"{name} is {_shown(value)}: expected a whole number from {low} to {high}", name)
    return value


def _boolean(given: dict, name: str) -> bool:
    value = given.get(name) or False
    if value not in (True, False):
        raise Refusal(f"{name} is {_shown(value)}: expected true or false", name)
    return bool(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
