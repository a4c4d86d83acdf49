"""Prompt styles as Jinja chat templates, and the turns that go through them."""

import json
from dataclasses import dataclass
from string import Formatter

from vision_backbones.names import suggest

IMAGE_TOKEN = "<image>"

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class _Style:
    """Patterns of `{text}`, `{system}` and `{eos}`. The space before an answer is the answer's: models generate it."""

    question: str
    answer: str = " {text}{eos}"
    opening: str | None = None  # the first question, where it differs
    system: str = ""


_STYLES: dict[str, _Style | str] = {
    "pure": _Style(question="In: {text}\nOut:"),
    "llama2-chat": _Style(
        question="[INST] {text} [/INST]",
        # "<<SYS>" lacks a ">" in the reference implementation too; prompts must equal those it trained with.
        opening="[INST] <<SYS>\n{system}\n<</SYS>>\n\n{text} [/INST]",
        system="You are a helpful language and vision assistant. You are able to understand the visual content that "
        "the user provides, and assist the user with a variety of tasks using natural language.",
    ),
    "vicuna-v1.5": _Style(
        question="USER: {text} ASSISTANT:",
        opening="{system} USER: {text} ASSISTANT:",
        system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
    ),
    "mistral-instruct": _Style(question="[INST] {text} [/INST]"),
    "phi-2": _Style(
        question="Input: {text}\nOutput:",
        answer=" {text}\n<|endoftext|>",
        opening="<|endoftext|>Input: {text}\nOutput:",
    ),
}

# A content is a string or a list of parts, of which the text is written; where images go is the processor's business.
_TEMPLATE = """\
{%- macro text_of(content) -%}
{{ content if content is string else content | selectattr("text", "defined") | map(attribute="text") | join }}
{%- endmacro -%}
{%- set eos = eos_token | default("</s>") -%}
{%- set given = messages[0].role == "system" -%}
{%- set system = text_of(messages[0].content) if given else SYSTEM -%}
{%- for message in messages if message.role != "system" -%}
{%- set text = text_of(message.content) -%}
{%- if message.role == "assistant" -%}
{%- generation -%}{{ ANSWER }}{%- endgeneration -%}
{%- elif loop.first -%}
{{ OPENING }}
{%- else -%}
{{ QUESTION }}
{%- endif -%}
{%- endfor -%}
"""


def register_prompt_style(name: str, template: str) -> None:
    """Adds a prompt style of one's own, known to every recipe from then on; a plugin does so when it is imported.

    Args:
        name: for `--prompt_style`.
        template: Jinja chat template.

    Raises:
        ValueError: the name is taken by another template.
    """
    if name in _STYLES and _STYLES[name] != template:
        raise ValueError(f"prompt style {name!r} already exists: choose another name")
    _STYLES[name] = template


def prompt_styles() -> list[str]:
    """Names of the prompt styles."""
    return list(_STYLES)


def chat_template(style: str) -> str:
    """Jinja chat template of a named prompt style, to be set as `tokenizer.chat_template`.

    Those that come with this package write no BOS, which the tokenizer adds, and take contents as they are
    (`to_messages` cleans them); a user message ends in the generation prompt with or without `add_generation_prompt`.

    Raises:
        ValueError: if the style is unknown.
    """
    if style not in _STYLES:
        raise ValueError(f"unknown prompt style {style!r}: {suggest(style, _STYLES)} Or give FILE.jinja")
    pieces = _STYLES[style]
    if isinstance(pieces, str):
        return pieces
    return (
        _TEMPLATE.replace("SYSTEM", json.dumps(pieces.system))
        .replace("ANSWER", _expression(pieces.answer))
        .replace("OPENING", _expression(pieces.opening or pieces.question))
        .replace("QUESTION", _expression(pieces.question))
    )


def current_template(template: str | None) -> str | None:
    """A chat template as it is written now, if it is how a prompt style was written before answers were marked."""
    if isinstance(template, str):
        for style in prompt_styles():
            if template == without_marks(chat_template(style)):
                return chat_template(style)
    return template


def without_marks(template: str | dict | None) -> str | dict | None:
    """A chat template without the marks of a prompt style's answers, which change nothing that it writes."""
    if not isinstance(template, str):
        return template
    return template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def to_messages(conversation: list[dict]) -> list[dict[str, str]]:
    """Chat messages (`role`, `content`) of a conversation, cleaned as the reference cleans them.

    Args:
        conversation: LLaVA turns (`from`: human or gpt, `value`) or chat messages (`role`, `content`); roles alternate,
            beginning with the user, after an optional system message.

    Returns:
        Messages whose contents carry neither "<image>" nor outer white space; an empty answer becomes one space.

    Raises:
        ValueError: if there are no turns, a turn is malformed, or roles are out of order.
    """
    if not isinstance(conversation, list) or not conversation:
        raise ValueError(f"expected a list of at least one turn, got {_brief(conversation)}")
    messages = []
    for index, turn in enumerate(conversation):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {index}: expected an object with 'from' and 'value', got {_brief(turn)}")
        name, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise ValueError(
                f"turn {index}: unknown role {_brief(name)}, expected human and gpt (or user and assistant)"
            )
        if not isinstance(content, str):
            raise ValueError(f"turn {index} ({name}): expected text, got {_brief(content)}")
        content = _unmarked(content).strip()
        messages.append({"role": role, "content": content or (" " if role == "assistant" else "")})
    first = 1 if messages[0]["role"] == "system" else 0
    if len(messages) == first:
        raise ValueError("the conversation holds a system message only, expected a question after it")
    for index, message in enumerate(messages[first:]):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise ValueError(
                f"turn {first + index} is the {message['role']}'s where the {expected}'s is due: roles must alternate, "
                "beginning with the user"
            )
    return messages


def _unmarked(text: str) -> str:
    """The text without "<image>", also those that taking one out of "<ima<image>ge>" leaves; in linear time."""
    if IMAGE_TOKEN not in text.replace(IMAGE_TOKEN, ""):
        return text.replace(IMAGE_TOKEN, "")
    kept, length = [], len(IMAGE_TOKEN)
    for letter in text:
        kept.append(letter)
        if letter == ">" and "".join(kept[-length:]) == IMAGE_TOKEN:
            del kept[-length:]
    return "".join(kept)


def _expression(pattern: str) -> str:
    """Jinja expression of a pattern: `In: {text}` becomes `"In: " ~ text`."""
    parts = []
    for literal, name, _, _ in Formatter().parse(pattern):
        parts += [json.dumps(literal)] * bool(literal) + [name] * bool(name)
    return " ~ ".join(parts)


def _brief(value) -> str:
    """Short form of any value for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
