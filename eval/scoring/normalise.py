"""Answers before they are compared, as the official scorer of each data set takes them, oddities included."""

import re
import string

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {word: str(i) for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
# Each is restored from itself without any one of its apostrophes.
_RESTORED = {c[:i] + c[i + 1 :]: c for c in _CONTRACTIONS for i, letter in enumerate(c) if letter == "'"}
_RESTORED["somebody'd"] = "somebodyd"
# VizWiz restores them with back-ticks, but for some, and only what has no back-tick, which counts as punctuation.
_PLAIN = ("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've")
_VIZWIZ_RESTORED = {k: v if v in _PLAIN else v.replace("'", "`") for k, v in _RESTORED.items() if "'" not in k}
_VIZWIZ_RESTORED |= {"couldn'tve": "couldn`t`ve", "hadn'tve": "hadn`t`ve"}


def vqav2_prediction(text: str) -> str:
    """A predicted answer as VQAv2 compares it."""
    return _plain_words(strip_punctuation(_one_line(text)), _RESTORED)


def vizwiz_prediction(text: str) -> str:
    """A predicted answer as VizWiz compares it."""
    return _plain_words(strip_punctuation(_one_line(text)), _VIZWIZ_RESTORED)


def textvqa_answer(text: str) -> str:
    """An answer, predicted or true, as TextVQA compares it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(strip_punctuation(_one_line(text)), _RESTORED)


def gqa_prediction(text: str) -> str:
    """A predicted answer as GQA compares it: lower case, without ASCII punctuation."""
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def strip_punctuation(text: str) -> str:
    """A text as VQAv2's true answers are compared: punctuation removed or replaced by a space, case and words kept."""
    digits_with_comma = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if at_edge or digits_with_comma else " ")
    return re.sub(r"\.(?!\d)", "", out, count=32)  # the official script passes a flag, 32, where the count goes


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _plain_words(text: str, restored: dict[str, str]) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(restored.get(word, word) for word in words if word not in ("a", "an", "the"))
