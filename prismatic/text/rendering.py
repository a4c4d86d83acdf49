"""Conversations written through chat templates, in training and evaluation alike.

A template is asked once for every order of roles, with stand-ins for the contents; what people wrote goes into their
places as it is. So no template changes it, and none can make it a control token.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from prismatic.text.prompts import chat_template, prompt_styles, to_messages
from prismatic.text.trial import check_modest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TURNS = 1_000
STAND_IN = "stand-in-for-a-content-7f3a-"  # which neither a template nor a content says
TODAY = datetime(2024, 7, 26)  # for templates that tell it, Llama 3's own default: a model is asked tomorrow, too


@dataclass(frozen=True)
class Turn:
    """The wrapped text of a turn: where the words of a data set or a user stand in it, and how far the model says it.

    Attributes:
        text: of the turn.
        contents: spans of it, in which control tokens are words.
        said: of an answer, the end of what is generated: its end token is the last; 0 in a user's turn.
    """

    text: str
    contents: tuple[tuple[int, int], ...]
    said: int = 0


def write_turns(conversation: list[dict], template: "str | PreTrainedTokenizerBase") -> list[Turn]:
    """The turns of a conversation, whose texts together are that of the whole; contents are written as they are.

    A user's turn ends where the model goes on: it includes the generation prompt, and what a template writes between
    that and an answer (an empty block of thoughts), but not a mere space, which the model says. A system message opens
    the first turn, where the template writes it. An answer ends as the template has it, be it followed by a turn or
    not, and in any case in a control token, EOS for want of another.

    Args:
        conversation: turns as `to_messages` takes them.
        template: chat template, or a tokenizer that has one.

    Raises:
        ValueError: if the conversation is malformed or longer than `MOST_TURNS`, or the template refuses it or does not
            write its contents.
    """
    return write_messages(to_messages(conversation), template)


def write_messages(
    messages: list[dict], template: "str | PreTrainedTokenizerBase", chat_template: str | None = None
) -> list[Turn]:
    """`write_turns` of messages whose contents are text and stay as they are.

    Args:
        messages: `role` and `content`; roles alternate, beginning with the user, after an optional system message.
        template: as for `write_turns`.
        chat_template: instead of the tokenizer's.
    """
    if len(messages) > MOST_TURNS:
        raise ValueError(f"the conversation has {len(messages):,} turns, expected at most {MOST_TURNS:,}")
    own, *tokens = _source(template)
    frames = _frames(tuple(message["role"] for message in messages), chat_template or own, *tokens)
    return [_filled(frame, said, [message["content"] for message in messages]) for frame, said in frames]


def render_turns(conversation: list[dict], template: "str | PreTrainedTokenizerBase") -> list[str]:
    """The texts of `write_turns`."""
    return [turn.text for turn in write_turns(conversation, template)]


def render_prompt(conversation: list[dict], template: "str | PreTrainedTokenizerBase") -> str:
    """Text of a conversation, ready for the answer to be generated if the last turn is the user's.

    Takes and raises what `write_turns` does. No BOS is written, unless the template itself begins with one.
    """
    return "".join(render_turns(conversation, template))


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The tokens that steer a model, which words of a data set must not become."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(token for token in (*tokenizer.all_special_tokens, *added) if token))


@lru_cache(maxsize=1024)
def _frames(roles: tuple[str, ...], template: str, special_tokens: tuple, control: tuple[str, ...]) -> list:
    """Of every turn its text with stand-ins for contents, and where what the model says ends after the last of them."""
    try:
        return _frames_of(roles, template, special_tokens, control, lambda text: text)
    except ValueError as error:
        try:  # templates of models that see take lists
            return _frames_of(roles, template, special_tokens, control, lambda text: [{"type": "text", "text": text}])
        except ValueError:
            raise error from None


def _frames_of(roles, template: str, special_tokens: tuple, control: tuple[str, ...], wrap: Callable) -> list:
    messages = [{"role": role, "content": f"{STAND_IN}{number};"} for number, role in enumerate(roles)]

    def render(messages: list[dict], prompt: bool) -> str:
        wrapped = [message | {"content": wrap(message["content"])} for message in messages]
        return _render(wrapped, template, special_tokens, add_generation_prompt=prompt)

    def after(text: str, number: int) -> str:
        before, found, rest = text.rpartition(messages[number]["content"])
        if not found:
            raise ValueError(f"the chat template does not write the content of a turn of the {roles[number]}")
        return rest

    frames, ends = [], ""
    for number, role in enumerate(roles):
        if role == "system":
            continue
        if role == "user":
            prompt = render(messages[: number + 1], True)
            answer = {"role": "assistant", "content": f"{STAND_IN}{number + 1};"}
            text = render([*messages[: number + 1], answer], False)
            before, found, tail = text.rpartition(answer["content"])
            if not found:
                raise ValueError("the chat template does not write the content of an answer")
            lead = before[len(prompt) :] if before.startswith(prompt) else ""
            if (words := lead.rstrip(" ")).strip():  # spaces after them are the answer's: tokens join both
                prompt, lead = prompt + words, lead[len(words) :]
            after(prompt, number)  # else a question would be lost; system messages some styles of the reference drop
            frames.append((after(prompt, number - 1)[len(ends) :] if frames else prompt, 0))
            continue
        ends = tail
        if number + 1 < len(roles):
            followed = after(render(messages[: number + 2], True), number)
            ends = os.path.commonprefix([tail, followed])
            last, here = (token_pattern(control).search(text) for text in (tail, followed))
            if last and here and last.end() > len(ends):  # another token ends an answer that is not the last
                ends = followed[: here.end()]
        written, stop = ends, token_pattern(control).search(ends)
        if not stop:
            written = ends.rstrip() + dict(special_tokens).get("eos_token", "")
        frames.append((lead + messages[number]["content"] + written, stop.end() if stop else len(written)))
    return frames


def _filled(frame: str, said: int, contents: list[str]) -> Turn:
    pieces, spans, length = re.split(f"{STAND_IN}([0-9]+);", frame), [], 0
    for place in range(1, len(pieces), 2):
        length += len(pieces[place - 1])
        pieces[place] = contents[int(pieces[place])]
        spans.append((length, length + len(pieces[place])))
        length += len(pieces[place])
    return Turn("".join(pieces), tuple(spans), length + said if said else 0)


@lru_cache(maxsize=8)
def token_pattern(tokens: tuple[str, ...]) -> re.Pattern:
    """Finds any of some tokens in a text, of those that begin alike the longest."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def _source(template) -> tuple[str, tuple, tuple]:
    """Chat template, the special tokens it may mention, and all that steer the model; hashable."""
    if isinstance(template, str):
        return template, (), ()
    special_tokens = tuple((name, str(token)) for name, token in template.special_tokens_map.items())
    return template.get_chat_template(), special_tokens, control_tokens(template)


def _render(messages: list[dict], template: str, special_tokens: tuple, *, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    _try(template, special_tokens)
    try:
        return _write(messages, template, special_tokens, add_generation_prompt)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}") from error
    except Exception as error:  # of a stranger's template: nearly anything
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the chat template fails on the conversation ({type(error).__name__}: {reason})") from error


def _write(messages: list[dict], template: str, special_tokens: tuple, add_generation_prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    if "strftime_now" in template:
        template = _today() + template
    options = {"chat_template": template, "add_generation_prompt": add_generation_prompt, "enable_thinking": False}
    return render_jinja_template([messages], **options, **dict(special_tokens))[0][0]


def _today() -> str:
    """The start of a template in which it is always `TODAY`: transformers hands no functions over."""
    filters = "".join(f' | replace("%{letter}", "{TODAY.strftime("%" + letter)}")' for letter in "dbBYmyaAHMSjpI")
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}" + '{{ "" }}'


@lru_cache
def _try(template: str, special_tokens: tuple) -> None:
    """Raises ValueError for a template that takes too much; those of the styles do not."""
    if template not in map(chat_template, prompt_styles()):
        check_modest(lambda messages: _write(messages, template, special_tokens, True))
