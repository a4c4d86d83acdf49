"""What models are asked, word for word as the reference asks it."""

from collections.abc import Sequence
from string import ascii_uppercase

from eval.task import Example

BRIEFLY = "Answer the question using a single word or phrase."


def short_answer(example: Example) -> str:
    """The question, to be answered in a word or two."""
    return f"{example.question}\n{BRIEFLY}"


def short_answer_if_any(example: Example) -> str:
    """The question, to be answered in a word or two or as unanswerable."""
    unanswerable = "When the provided information is insufficient, respond with 'Unanswerable'."
    return f"{example.question}\n{unanswerable}\n{BRIEFLY}"


def true_or_false(example: Example) -> str:
    """Whether a statement is true."""
    asked = 'Based on the image, is this statement "True" or "False"?'
    return f'{asked} {example.question}\nRespond with "True" or "False" directly.'


def lettered(example: Example) -> str:
    """The question and `info["choices"]`, to be answered by a letter."""
    choices = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, example.info["choices"], strict=False)]
    directly = "Answer with the option's letter from the given choices directly."
    return "\n".join([example.question, *choices, directly])


def letters(choices: Sequence) -> tuple[str, ...]:
    """The letters of that many choices."""
    return tuple(ascii_uppercase[: len(choices)])


def box(example: Example) -> str:
    """Where what the question describes is."""
    asked = "Please provide the bounding box coordinate of the region this sentence describes:"
    return f'{asked} "{example.question}"'
