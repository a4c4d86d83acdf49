"""Statements about two things said the other way round: what is left of a thing has the thing to its right.

Not of "in front of" and "behind": in front of a car may be where it heads, and the car then need not be behind.
"""

import re

_PAIRS = (
    ("at the left side of", "at the right side of"),
    ("to the left of", "to the right of"),
    ("left of", "right of"),
    ("above", "below"),
    ("over", "under"),
    ("on top of", "beneath"),
    ("inside", "contains"),
)
_SYMMETRIC = ("touching", "next to", "beside", "near", "close to", "far from", "far away from", "away from",
              "alongside", "adjacent to", "parallel to", "perpendicular to", "across from")  # fmt: skip
CONVERSES = dict(_PAIRS) | {two: one for one, two in _PAIRS} | {relation: relation for relation in _SYMMETRIC}
ALONE = ("contains",)  # relations without "is" before them


def converse(statement: str, relation: str) -> str | None:
    """The statement with its two things exchanged and the relation turned round, which is true if and only if it is.

    Returns:
        None where the relation has no converse (`CONVERSES`), or the statement is not "The X is RELATION the Y."
    """
    said = re.fullmatch(
        rf"The (?P<one>.+?) (?:(?P<verb>is|are) )?{re.escape(relation)} the (?P<two>.+?)(?P<end>\.?)", statement.strip()
    )
    if relation not in CONVERSES or said is None or (said["verb"] is None) != (relation in ALONE):
        return None
    turned = CONVERSES[relation]
    verb = "" if turned in ALONE else f"{said['verb'] or 'is'} "
    return f"The {said['two']} {verb}{turned} the {said['one']}{said['end']}"
