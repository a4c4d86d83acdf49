"""Which of several options an answer names, by its letter or in words. No answer of any kind raises."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from eval.scoring.numbers import whole_numbers
from prismatic.text.parsing import LONGEST

# "A cat" has an article, "A is nearer" a letter: what comes after it tells.
_AFTER_LETTERS = (
    "is|was|are|has|does|seems|appears|looks|would|could|should|must|can|will|because|since|as|for|due|given|if|when|"
    "but|while|where|which|that|than|and|or|in|on|at|with|from|to"
)
_ARTICLE = rf"[Aa](?= (?!(?:{_AFTER_LETTERS})\b)[a-z])"
_WRONG = r"(?: is|'s)? (?:not\b|wrong\b|incorrect\b|false\b)| isn't\b| can(?:not|'t)\b"
_ALONE = re.compile(rf"(?<![\w'])(?!{_ARTICLE}|I [a-z])([A-Z])(?![\w'])(?!{_WRONG})")
_NAMED = re.compile(
    rf"\b(?:(?i:option|choice)(?: is)?\W{{0,6}}([A-Z]|(?!{_ARTICLE})[a-z])"
    rf"|(?i:answer|choose|chose|pick|select)\W{{0,6}}(?!{_ARTICLE})([A-Z]))(?![\w'])(?!{_WRONG})"
)
_JUDGED = re.compile(r"(?<![\w'])([A-Z]) is (?:the )?(?:correct|best|answer|right (?:answer|option|choice|one))\b")
_LEADING = re.compile(
    r"""[\s(\[{*_"'`<>-]*
    (?: ([A-Za-z]) [*_]* (?: [)\]}] | [.:] (?!\w) | \s*\Z | \s*\n )
      | ([A-Z]) [*_]* (?: \s [-–—] \s | [–—] | , (?! \s*(?:(?:and|or)\s)? [A-Z](?!\w)) ) )""",
    re.VERBOSE,
)
_SAYS = re.compile(r"answer(?: to (?:the|this|your) question)?[*_ ]*(?:(?:is|would be)\b|:)[*_:\s]*", re.IGNORECASE)
_LISTED = re.compile(r"(?m)^\s*\d{1,3}[.)]\s+(?=\S)")  # the number of a step
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
_DENIAL = re.compile(r"(?i)(?:\bnot|n't|\brather than|\binstead of)(?: (?:the|a|an|on|at|in|to))*\W*\Z")


def find_choice(text: str, choices: Sequence[str]) -> int | None:
    """Index of the one of `choices` that an answer names, by letter or in words; None if it names none, or several.

    What follows the last "answer is" or "answer:" decides, if it names one; else the first sentence, then all of the
    text. In each the first of these that is there: what it is as a whole; a letter that it begins with; the only letter
    in brackets or after "option"; the only choice whose words it has; the only capital letter that stands alone. Words
    inside those of a longer choice do not count, nor what "not" stands before; choices that are whole numbers are also
    said as words. A letter that stands for no choice is none.
    """
    text = _LISTED.sub("", text[:LONGEST]).strip()
    letters = ascii_uppercase[: len(choices)]

    def letter(part: str) -> str:
        return _letter(part, choices)

    def words(part: str) -> str:
        return _words(part, choices)

    def alone(part: str) -> str:
        return _only({found[1] for found in _ALONE.finditer(part) if not _denied(part, found.start())} & {*letters})

    said = text[list(_SAYS.finditer(text))[-1].end() :] if _SAYS.search(text) else ""
    parts = dict.fromkeys((_first(said), said, _first(text), text))
    named = next(filter(None, (rule(part) for part in parts for rule in (letter, words, alone))), "")
    return letters.index(named) if named and named in letters else None


def _letter(part: str, choices: Sequence[str]) -> str:
    """The letter that a text is as a whole, begins with, or says to be one; empty without any."""
    bare = part.strip(" .,:;()[]*\"'\n").lower()
    named = [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if bare == _bare(choice)]
    if len(bare) == 1 and bare.upper() in ascii_uppercase[: len(choices)]:
        return bare.upper()
    if len(named) == 1:
        return named[0]
    if begun := _LEADING.match(part):
        return (begun[1] or begun[2]).upper()
    found = [*_NAMED.finditer(part), *_JUDGED.finditer(part), *re.finditer(r"\(([A-Za-z])\)", part)]
    said = {next(filter(None, one.groups())).upper() for one in found if not _denied(part, one.start())}
    return _only(said & {*ascii_uppercase[: len(choices)]})


def _words(part: str, choices: Sequence[str]) -> str:
    """The letter of the only choice whose words a text has; of "Yes" and "No" of the one that it begins with."""
    spoken = [_bare(choice) for choice in choices]
    begun = re.match(r"\W*(yes|no)\s*[.,;:!\n]", part, re.IGNORECASE)
    if begun and spoken.count(begun[1].lower()) == 1:
        return ascii_uppercase[spoken.index(begun[1].lower())]
    found = [(at.span(), i) for i, choice in enumerate(spoken) for at in _spoken(choice, part)]
    said = {
        i
        for (start, end), i in found
        if not any(a <= start and end <= b and b - a > end - start for (a, b), _ in found) and not _denied(part, start)
    }
    return _only({ascii_uppercase[i] for i in said})


def _spoken(choice: str, part: str) -> list[re.Match]:
    """Where a text has the words of a choice; of a whole number, its digits or else its name."""
    if not choice:
        return []
    if not choice.isdecimal():
        return list(re.finditer(rf"(?i)(?<!\w){re.escape(choice)}(?!\w)", part))
    equal = [found for found, value in whole_numbers(part) if value == int(choice)]
    return [found for found in equal if found["digits"]] or equal


def _denied(part: str, start: int) -> bool:
    """Whether "not" or the like stands before what begins there."""
    return bool(_DENIAL.search(part[max(0, start - 40) : start]))


def _only(letters: set[str]) -> str:
    return letters.pop() if len(letters) == 1 else ""


def _bare(choice: str) -> str:
    return choice.strip(" .").lower()


def _first(text: str) -> str:
    """Its first sentence."""
    return _SENTENCE.split(text.lstrip(), maxsplit=1)[0]
