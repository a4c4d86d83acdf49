"""Statements about two things said the other way round: what is left of a thing has the thing to its right.

Not of "in front of" and "behind": in front of a car may be where it heads, and the car then need not be behind. Nor of
"on top of" and "beneath": what a thing is beneath need not carry it. Things in the plural are left as they are.
"""

import re

_PAIRS = (
    ("at the left side of", "at the right side of"),
    ("to the left of", "to the right of"),
    ("left of", "right of"),
    ("above", "below"),
    ("over", "under"),
    ("inside", "contains"),
)
_SYMMETRIC = ("touching", "next to", "beside", "near", "close to", "far from", "far away from", "away from",
              "alongside", "adjacent to", "parallel to", "perpendicular to", "across from")  # fmt: skip
CONVERSES = dict(_PAIRS) | {two: one for one, two in _PAIRS} | {relation: relation for relation in _SYMMETRIC}
PLURALS = ("people", "men", "women", "children", "feet", "teeth", "geese", "mice", "sheep")
ALONE = ("contains",)  # relations without "is" before them


def converse(statement: str, relation: str) -> str | None:
    """The statement with its two things exchanged and the relation turned round, which is true if and only if it is.

    Returns:
        None where the relation has no converse (`CONVERSES`), the statement is not "The X is RELATION the Y.", or one
        of the two is in the plural, so that the verb would have to change.
    """
    said = re.fullmatch(
        rf"The (?P<one>.+?) (?:(?P<verb>is) )?{re.escape(relation)} the (?P<two>.+?)(?P<end>\.?)", statement.strip()
    )
    if relation not in CONVERSES or said is None or (said["verb"] is None) != (relation in ALONE):
        return None
    if _plural(said["one"]) or _plural(said["two"]):
        return None
    turned = CONVERSES[relation]
    return f"The {said['two']} {'' if turned in ALONE else 'is '}{turned} the {said['one']}{said['end']}"


def _plural(thing: str) -> bool:
    """Whether a thing may be several."""
    noun = thing.split()[-1].lower()
    return noun in PLURALS or (noun.endswith("s") and not noun.endswith(("ss", "us")))
