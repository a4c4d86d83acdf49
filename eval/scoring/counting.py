"""Scores of answers to how many there are."""

import re
from collections.abc import Sequence

from eval.scoring.means import Metrics, accuracy, by_subset, mean
from eval.scoring.parsing import LONGEST
from eval.task import Record, Scorer

_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {"none": 0, "zero": 0} | {word: number for number, word in enumerate(_ONES + _TEENS, 1)}
_WORDS |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_NUMBER = re.compile(
    rf"(?<![\w.])(?:(?P<digits>\d{{1,3}}(?:,\d{{3}})+|\d+)"
    rf"|(?:(?P<tens>{'|'.join(_TENS)})[- ](?P<ones>{'|'.join(_ONES)})|(?P<word>{'|'.join(_WORDS)}))(?!\w))",
    re.IGNORECASE,
)


def count() -> Scorer:
    """Share of outputs whose first number, in digits or words, is the answer, which is a whole number as text.

    Beside that: the share of those that differ from it by one at most (`within_one`), of outputs that are nothing but
    the right number (`exact_accuracy`), and of outputs without a number (`parse_failures`).
    """

    def judge(record: Record) -> Record:
        text = "" if record.get("error") else record["output"]
        said, truth = first_count(text), int(record["answer"])
        alone = _NUMBER.fullmatch(text.strip().removesuffix("."))
        return {
            "score": float(said == truth),
            "count": said,
            "within_one": said is not None and abs(said - truth) <= 1,
            "exact": said == truth and alone is not None,
        }

    def measure(records: Sequence[Record]) -> Metrics:
        return {
            "accuracy": accuracy(records),
            "within_one": mean(r["within_one"] for r in records),
            "exact_accuracy": mean(r["exact"] for r in records),
            "parse_failures": mean(r["count"] is None for r in records),
        }

    return Scorer("accuracy", judge, lambda records: by_subset(records, measure), "first number is right")


def first_count(text: str) -> int | None:
    """The first whole number in a text, in digits or as a word up to ninety-nine; None without any.

    A decimal is the whole number before its point.
    """
    found = _NUMBER.search(text[:LONGEST])
    if not found:
        return None
    digits, tens, ones, word = (found[name] for name in ("digits", "tens", "ones", "word"))
    if digits:
        digits = digits.replace(",", "").lstrip("0")
        return int(digits or 0) if len(digits) < 10 else None
    return _WORDS[word.lower()] if word else _WORDS[tens.lower()] + _WORDS[ones.lower()]
