"""Conversations turned into token ids and labels."""

from typing import TYPE_CHECKING

from prismatic.text.prompts import IMAGE_TOKEN, to_messages
from prismatic.text.rendering import Turn, render_turns, write_turns
from prismatic.text.words import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100


def tokenize_conversation(
    conversation: list[dict],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
    stage: str = "finetune",
    *,
    row_id: object = None,
    as_reference: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and, for each of them, its label.

    Stage finetune writes all turns through the tokenizer's chat template and supervises the assistant's words and end
    tokens; stage align writes and supervises the last answer alone, without a template (as LLaVA's first stage does).
    Image tokens are never written: `insert_image_tokens` adds them.

    Args:
        conversation: LLaVA turns (`from`: human or gpt, `value`) or chat messages (`role`, `content`).
        tokenizer: a tokenizer that knows offsets and, for finetune, has a chat template.
        max_length: number of tokens beyond which the conversation is cut off; None cuts nothing.
        stage: finetune or align.
        row_id: names the row in error messages.
        as_reference: words that look like control tokens become control tokens, as in the reference.

    Returns:
        `input_ids` and `labels`, equally long; the label is -100 where nothing is to be predicted.

    Raises:
        ValueError: if the conversation is malformed or the stage unknown.
    """
    write = {"finetune": _all_turns, "align": _last_answer}.get(stage)
    if write is None:
        raise ValueError(f"unknown stage {stage!r}: expected finetune or align")
    try:
        text, answers, contents = write(conversation, tokenizer)
    except ValueError as error:
        raise ValueError(str(error) if row_id is None else f"row {row_id!r}: {error}") from error
    input_ids, spans = encode_text(text, tokenizer, () if as_reference else contents)
    said = spoken(spans, answers)
    labels = [token if by_assistant else IGNORE_INDEX for token, by_assistant in zip(input_ids, said, strict=True)]
    return input_ids[:max_length], labels[:max_length]


def spoken(spans: list[tuple[int, int]], answers: list[tuple[int, int]]) -> list[bool]:
    """Of every token, given the span of text that it stands for, whether it begins in one of the answers' spans."""
    supervised = bytearray(max((end for _, end in (*spans, *answers)), default=0))
    for start, end in answers:
        supervised[start:end] = bytes([1]) * (end - start)
    found, previous_end = [], 0
    for start, end in spans:
        # Byte-level tokenizers leave a token's space out of its offsets; then it begins where the last one ended.
        start = min(start, previous_end)
        found.append(start < end and bool(supervised[start]))
        previous_end = max(previous_end, end)
    return found


def encode_prompt(question: str | list[dict], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a question, or of a conversation that ends with one: those that training writes before the answer.

    Raises:
        ValueError: the conversation is malformed, or ends with an answer.
    """
    messages = to_messages([{"role": "user", "content": question}] if isinstance(question, str) else question)
    if messages[-1]["role"] != "user":
        raise ValueError("the conversation ends with an answer, expected a question to be answered")
    text, _, contents = joined(write_turns(messages, tokenizer))
    return encode_text(text, tokenizer, contents)[0]


def bos_of(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What stands before an image, as in training: BOS if prompts begin with it."""
    first = encode_prompt("x", tokenizer)[:1]
    return first if first == [tokenizer.bos_token_id] else []


def insert_image_tokens(
    input_ids: list[int], labels: list[int], image_token_id: int, num_tokens: int, *, bos_token_id: int | None
) -> tuple[list[int], list[int]]:
    """Ids and labels with `num_tokens` unsupervised image tokens right after BOS, or in front where there is no BOS."""
    at = 1 if input_ids and bos_token_id is not None and input_ids[0] == bos_token_id else 0
    return (
        input_ids[:at] + [image_token_id] * num_tokens + input_ids[at:],
        labels[:at] + [IGNORE_INDEX] * num_tokens + labels[at:],
    )


def word_count(conversation: list[dict], stage: str = "finetune") -> int:
    """Number of words of a conversation, the cheap length by which rows are grouped.

    As in the reference, "<image>" counts as a word in stage finetune and does not in stage align.
    """
    texts = (turn["value"] for turn in conversation)
    if stage == "align":
        texts = (text.replace(IMAGE_TOKEN, "") for text in texts)
    return sum(len(text.split()) for text in texts)


def option_token_ids(tokenizer: "PreTrainedTokenizerBase", options: list[str]) -> list[list[int]]:
    """Token ids with which each option continues a prompt of the tokenizer's chat template; one or several each.

    Raises:
        ValueError: if an option is empty.
    """
    for option in options:
        if not option.strip():
            raise ValueError(f"expected options that are words, got {option!r} among {options}")
    prompt, answer = render_turns(
        [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "OPTION"}], tokenizer
    )
    opening = prompt + answer[: answer.index("OPTION")]
    prompt_ids = encode_text(prompt, tokenizer)[0]
    result = [encode_text(opening + option.strip(), tokenizer)[0] for option in options]
    for option, ids in zip(options, result, strict=True):
        if ids[: len(prompt_ids)] != prompt_ids:
            raise ValueError(f"option {option!r} merges with the prompt's last token and cannot be scored by itself")
    return [ids[len(prompt_ids) :] for ids in result]


Written = tuple[str, list[tuple[int, int]], list[tuple[int, int]]]


def _all_turns(conversation: list[dict], tokenizer) -> Written:
    """Text of a conversation, the spans of it that the assistant speaks, end tokens included, and those of contents."""
    return joined(write_turns(conversation, tokenizer))


def joined(turns: list[Turn]) -> Written:
    """Text of turns, the spans of it that the assistant speaks, end tokens included, and those of contents."""
    answers, contents, start = [], [], 0
    for turn in turns:
        if turn.said:
            answers.append((start, start + turn.said))
        contents += [(start + first, start + last) for first, last in turn.contents]
        start += len(turn.text)
    return "".join(turn.text for turn in turns), answers, contents


def _last_answer(conversation: list[dict], tokenizer) -> Written:
    answers = [message["content"] for message in to_messages(conversation) if message["role"] == "assistant"]
    if not answers:
        raise ValueError("the conversation holds no answer, expected one to align with")
    caption = answers[-1].strip()
    text = caption + tokenizer.eos_token
    return text, [(0, len(text))], [(0, len(caption))]
