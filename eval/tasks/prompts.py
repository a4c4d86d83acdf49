"""What models are asked, word for word as the reference asks it."""

import random
from collections.abc import Sequence
from string import ascii_uppercase

from eval.data.selection import SEED
from eval.task import Choose, Example, Generate

BRIEFLY = "Answer the question using a single word or phrase."
DIRECTLY = "Answer with the option's letter from the given choices directly."


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
    return "\n".join([example.question, *_lines(example), DIRECTLY])


def to_select(example: Example) -> str:
    """The question, a hint if there is one, and `info["choices"]`, as VLMEvalKit asks it."""
    hint = [f"Hint: {example.info['hint']}"] if example.info.get("hint") else []
    select = "Please select the correct answer from the options above. \n"
    return "\n".join([*hint, f"Question: {example.question}", "Options:", *_lines(example), select])


def bare(example: Example) -> str:
    """The question alone."""
    return example.question


def choose_letter(example: Example) -> Choose:
    """The letters of `info["choices"]`."""
    return Choose(letters(example.info["choices"]))


def choose_words(example: Example) -> Choose:
    """`info["choices"]` themselves."""
    return Choose(tuple(example.info["choices"]))


def shuffled(choices: Sequence[str], id: str) -> tuple[list[str], str]:
    """Choices of which the first is right, in an order that depends on the id alone, and the letter of that one."""
    order = list(range(len(choices)))
    random.Random(f"{SEED} {id}").shuffle(order)
    return [choices[place] for place in order], ascii_uppercase[order.index(0)]


# Of multiple choice: `llava` is the prompt that LLaVA was trained with, `text` reads the option out of what is written.
VARIANTS = {
    "llava": {"prompt": lettered, "answer": choose_letter},
    "text": {"answer": lambda example: Generate(64)},
}
# The same where the prompt itself names no options, which a text can only be held to if it does.
VARIANTS_OF_BARE = VARIANTS | {"text": {"prompt": lettered} | VARIANTS["text"]}


def letters(choices: Sequence) -> tuple[str, ...]:
    """The letters of that many choices."""
    return tuple(ascii_uppercase[: len(choices)])


def box(example: Example) -> str:
    """Where what the question describes is."""
    asked = "Please provide the bounding box coordinate of the region this sentence describes:"
    return f'{asked} "{example.question}"'


def _lines(example: Example) -> list[str]:
    return [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, example.info["choices"], strict=False)]
