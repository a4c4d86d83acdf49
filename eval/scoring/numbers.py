"""Whole numbers in texts, in digits or as words up to ninety-nine."""

import re
from collections.abc import Iterator

_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {"none": 0, "zero": 0} | {word: number for number, word in enumerate(_ONES + _TEENS, 1)}
_WORDS |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_BELOW_HUNDRED = rf"(?P<tens>{'|'.join(_TENS)})[- ](?P<ones>{'|'.join(_ONES)})"
NUMBER = re.compile(
    rf"(?<![\w.])(?:(?P<digits>\d{{1,3}}(?:,\d{{3}})+|\d+)"
    rf"|(?<!\bno[ -])(?:{_BELOW_HUNDRED}|(?P<word>{'|'.join(_WORDS)}))(?!\w))",
    re.IGNORECASE,
)


def value_of(found: re.Match) -> int | None:
    """What a match of `NUMBER` stands for; None where it has ten digits or more."""
    digits, tens, ones, word = (found[name] for name in ("digits", "tens", "ones", "word"))
    if digits:
        digits = digits.replace(",", "").lstrip("0")
        return int(digits or 0) if len(digits) < 10 else None
    return _WORDS[word.lower()] if word else _WORDS[tens.lower()] + _WORDS[ones.lower()]


def whole_numbers(text: str) -> Iterator[tuple[re.Match, int | None]]:
    """The numbers of a text without those that go on after their digits, as 2.5 and 2nd do; and what they stand for."""
    for found in NUMBER.finditer(text):
        if not re.match(r"\w|\.\d", text[found.end() : found.end() + 2]):
            yield found, value_of(found)
