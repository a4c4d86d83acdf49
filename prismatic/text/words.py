"""Token ids of rendered conversations in which the words of a data set stay words.

A text that says "</s>" or "<|im_end|>" must not end the model's turn: control tokens are those that the chat template
writes, and what looks like one inside a content is spelled out in ordinary tokens.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prismatic.text.rendering import control_tokens, token_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
GUARDS = (".", "\n", "0")  # texts in front of a piece, so that no blank is put there


def encode_text(text: str, tokenizer: "PreTrainedTokenizerBase", contents: Sequence[Span] = ()) -> tuple[list, list]:
    """Token ids of a rendered text and the span of it that each stands for, with BOS as the tokenizer has it.

    Some chat templates write BOS themselves; tokenizing their text as usual would double it.

    Args:
        text: from a chat template.
        tokenizer: knows offsets.
        contents: spans of the text that a data set or a user wrote.
    """
    has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    has_bos = has_bos and not any(start == 0 for start, _ in contents)
    encoded = tokenizer(text, add_special_tokens=not has_bos, verbose=False, return_offsets_mapping=True)
    ids, spans = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    control = token_pattern(control_tokens(tokenizer))
    if not any(control.search(text, start, end) for start, end in contents):
        return ids, spans
    special = set(tokenizer.all_special_ids)
    around = [number for number, span in enumerate(spans) if span == (0, 0) and ids[number] in special]
    before = [ids[number] for number in around if number < len(ids) // 2]
    after = [ids[number] for number in around if number >= len(ids) // 2]
    middle, middle_spans, at = [], [], 0
    for found in control.finditer(text):
        if any(start < found.end() and found.start() < end for start, end in contents):
            continue
        _append(middle, middle_spans, text, (at, found.start()), tokenizer)
        middle.append(tokenizer.convert_tokens_to_ids(found[0]))
        middle_spans.append(found.span())
        at = found.end()
    _append(middle, middle_spans, text, (at, len(text)), tokenizer)
    return before + middle + after, [(0, 0)] * len(before) + middle_spans + [(0, 0)] * len(after)


def _append(ids: list, spans: list, text: str, span: Span, tokenizer) -> None:
    """Adds the tokens of a piece of text between control tokens; none of them is a control token."""
    start, end = span
    if start == end:
        return
    piece = text[start:end]
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    for guard in ("",) if not ids or _blank_everywhere(tokenizer) else (*GUARDS, ""):
        encoded = tokenizer(guard + piece, verbose=False, **options)
        found = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        inside = [(id, (a - len(guard), b - len(guard))) for id, (a, b) in found if b > len(guard) or not guard]
        if all(a >= 0 for _, (a, _) in inside):
            break
    ids += [id for id, _ in inside]
    spans += [(start + a, start + b) for _, (a, b) in inside]


def _blank_everywhere(tokenizer) -> bool:
    """Whether text after a control token is encoded as at the start: with a blank in front both times, or neither."""
    mark = tokenizer.eos_token
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (mark + "x", "x")]
    return ids[0][1:] == ids[1]
