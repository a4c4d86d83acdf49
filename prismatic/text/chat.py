"""Chat messages with images, as Hugging Face and OpenAI clients write them, on their way through a chat template.

What a person wrote must not become a control token. In text that a template has rendered, such words are therefore
wrapped in two characters that no text holds (Unicode noncharacters), until they are tokenized.
"""

import re
from typing import TYPE_CHECKING, Any

from prismatic.text.conversations import joined
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.rendering import token_pattern, write_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
OPENS, CLOSES = "\ufdd0", "\ufdd1"
_PIECES = re.compile(f"{OPENS}([^{OPENS}{CLOSES}]*){CLOSES}|{IMAGE_TOKEN}\n?")
IMAGE_KEYS = ("image", "url", "path", "base64")


def as_text_messages(conversation: list[dict], *, marks: bool) -> tuple[list[dict], list[Any]]:
    """Messages whose contents are text, stripped as training strips it, and the images of all of them in order.

    Args:
        conversation: messages whose contents are text or lists of parts `text`, `image` and `image_url`.
        marks: write `<image>` in front of the text of a message for each of its images.

    Raises:
        ValueError: a message is none, or a part is of another type or holds no image.
    """
    messages, images = [], []
    for number, message in enumerate(getattr(conversation, "messages", conversation)):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} is {message!r:.80}: expected an object with role and content")
        content = message.get("content")
        parts = [{"type": "text", "text": content or ""}] if isinstance(content, str | None) else content
        texts, count = [], 0
        for part in parts:
            part = {"type": "text", "text": part} if isinstance(part, str) else part
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif kind in ("image", "image_url"):
                images += _image_of(part, number)
                count += 1
            else:
                raise ValueError(
                    f"message {number} has the part {part!r:.80}: expected {{'type': 'text', 'text': ...}} or an image "
                    "(type image, with image, url, path or base64, or type image_url)"
                )
        text = "".join(texts).strip() or (" " if message["role"] == "assistant" else "")
        messages.append(message | {"content": f"{IMAGE_TOKEN}\n" * count * marks + text})
    return messages, images


def _image_of(part: dict, number: int) -> list[Any]:
    """The image that a part holds; none of a mere placeholder."""
    if part["type"] == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str):
            raise ValueError(f"message {number} has an image_url without a url: expected {{'url': 'https://...'}}")
        return [url]
    return [part[key] for key in IMAGE_KEYS if part.get(key) is not None][:1]


def mark_literals(messages: list[dict], tokens: tuple[str, ...]) -> list[dict]:
    """Messages in whose contents what looks like one of `tokens` is wrapped."""
    pattern = token_pattern((*tokens, IMAGE_TOKEN))
    return [
        message | {"content": pattern.sub(lambda found: f"{OPENS}{found[0]}{CLOSES}", message["content"])}
        for message in messages
    ]


def unmarked_spans(text: str) -> tuple[str, list[Span], list[int], int]:
    """A text without the marks in it.

    Returns:
        The text without `<image>` (and the line break after it) and without the wrapping of literal tokens; the spans
        of it that are literal; for each character its place in the given text; and how many images were marked.
    """
    pieces, literal, places, images, at = [], [], [], 0, 0

    def keep(start: int, end: int) -> None:
        pieces.append(text[start:end])
        places.extend(range(start, end))

    for found in _PIECES.finditer(text):
        keep(at, found.start())
        if found[1] is None:
            images += 1
        else:
            literal.append((len(places), len(places) + len(found[1])))
            keep(*found.span(1))
        at = found.end()
    keep(at, len(text))
    plain = "".join(pieces)
    # "<ima<image>ge>" leaves another behind, which nobody counted: it is a word
    literal += [found.span() for found in re.finditer(re.escape(IMAGE_TOKEN), plain) if found.span() not in literal]
    return plain, literal, places, images


def spoken_spans(messages: list[dict], text: str, tokenizer: "PreTrainedTokenizerBase", template: str) -> list[Span]:
    """The spans of a rendered conversation that the assistant speaks, end tokens included.

    Raises:
        ValueError: The template writes this conversation otherwise than training does.
    """
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    orderly = turns == ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2)
    whole, spans, _ = joined(write_messages(messages, tokenizer, template)) if orderly else ("", [], [])
    if not orderly or not text.startswith(whole[: spans[-1][1] if spans else 0]):
        raise ValueError(
            "the chat template writes this conversation otherwise than training does (system messages inside, turns in "
            "another order, or tools), so that the assistant's tokens are not known"
        )
    return spans
