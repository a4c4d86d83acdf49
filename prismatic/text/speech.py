"""How a VLM is spoken to: its prompt style, and the tokens at which its answers end."""

from pathlib import Path

from prismatic.text.conversations import tokenize_conversation
from prismatic.text.prompts import chat_template, current_template, prompt_styles
from prismatic.text.rendering import control_tokens

ASKED = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]


def template_of(style: str) -> str | None:
    """Chat template of a prompt style: a name, a `FILE.jinja`, or a template itself; None of "auto".

    Raises:
        ValueError: there is no such style or file.
    """
    if style == "auto":
        return None
    if "{{" in style or "{%" in style:
        return style
    if not style.endswith(".jinja"):
        return chat_template(style)
    try:
        return Path(style).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"prompt style {style} cannot be read ({error}): give a file with a chat template") from None


def style_of(tokenizer) -> str:
    """Name of a tokenizer's prompt style; "its own" if it is none of those known by name."""
    return next(
        (name for name in prompt_styles() if chat_template(name) == current_template(tokenizer.chat_template)),
        "its own",
    )


def speak(model, processor, style: str) -> None:
    """Sets another prompt style for a VLM and its processor, unless it is "auto"; its answers may then end otherwise.

    Raises:
        ValueError: there is no such style, or its template refuses a question and an answer.
    """
    template = template_of(style)
    if template is not None:
        processor.chat_template = processor.tokenizer.chat_template = template
        stop_where_answers_end(model, processor.tokenizer)


def stop_where_answers_end(model, tokenizer, own: int | list[int] | None = None) -> None:
    """Sets `generation_config.eos_token_id`: the LLM's own, the tokenizer's, and what ends an answer in training."""
    before = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id]
    for ids in (own, before):
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    _, labels = tokenize_conversation(2 * ASKED, tokenizer, len(tokenizer))
    control = control_tokens(tokenizer)
    found += [label for label in labels if label >= 0 and tokenizer.convert_ids_to_tokens(label) in control]
    stops = sorted(set(found), key=found.index)
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
