"""Scores of answers to how many there are."""

import re
from collections.abc import Sequence

from eval.scoring.means import Metrics, accuracy, by_subset, mean
from eval.scoring.numbers import NUMBER, value_of
from eval.task import Record, Scorer
from prismatic.text.parsing import LONGEST

# What a count stands behind, the surest first; the answer is what follows the last of these, or the first of those.
_SAYS = re.compile(r"answer(?: is\b|:)", re.IGNORECASE)
_TELLS = re.compile(r"\b(?:there (?:are|is|were|was)|i (?:can )?(?:count|see)|total (?:of|is))\b", re.IGNORECASE)
_NOTHING = re.compile(r"\W*(?:no|not any|nobody|no[ -]one)\b", re.IGNORECASE)
_NOBODY = re.compile(r"\W*(?:no[ -]one|nobody)\b", re.IGNORECASE)


def count() -> Scorer:
    """Share of outputs that give the right number (see `first_count`). Examples' answers are whole numbers as text.

    Beside that: the share of those that differ from it by one at most (`within_one`), of outputs that are nothing but
    the right number (`exact_accuracy`), and of outputs without a number (`parse_failures`).
    """

    def judge(record: Record) -> Record:
        text = "" if record.get("error") else record["output"]
        said, truth = first_count(text), int(record["answer"])
        alone = NUMBER.fullmatch(text.strip().removesuffix("."))
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

    return Scorer("accuracy", judge, lambda records: by_subset(records, measure), "number is right")


def first_count(text: str) -> int | None:
    """The number that a text gives, in digits or as a word up to ninety-nine; None without any.

    That is the first one after the last "answer is", else after "there are", "I count" and the like, in the same
    sentence, where "no" is 0; else the first of the text. A decimal is the whole number before its point.
    """
    text = text[:LONGEST]
    for cue in (*list(_SAYS.finditer(text))[-1:], *_TELLS.finditer(text)):
        rest = re.split(r"(?<=[.!?])\s|\n", text[cue.end() :].lstrip(), maxsplit=1)[0]
        if _NOTHING.match(rest):
            return 0
        if found := NUMBER.search(rest):
            return value_of(found)
    found = NUMBER.search(text)
    if found:
        return value_of(found)
    return 0 if _NOBODY.match(text) else None
