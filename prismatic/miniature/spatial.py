"""What spatial benchmarks ask, about miniature scenes: which object, is it so, how many, which of several.

Everything said here has one right answer: things that are compared are `MARGIN` pixels apart or more, and things in a
half or a corner `FROM_MIDDLE` pixels or more from the lines through the middle.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from prismatic.miniature.scenes import CLASSES, COLOURS, IMAGE_SIZE, MAX_OBJECTS, SHAPES, Thing

MARGIN = 3  # pixels by which positions differ wherever a sentence tells them apart
MIDDLE, FROM_MIDDLE = IMAGE_SIZE // 2, 2  # pixels
RELATIONS = {"to the left of": ("x", 1), "to the right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}
ENDS = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

Things = tuple[Thing, ...]


@dataclass(frozen=True)
class Expression:
    """Words that fit one thing of a scene; `style` is "place", "appearance" or "relation": what tells it apart."""

    thing: Thing
    text: str
    style: str


@dataclass(frozen=True)
class Statement:
    """A sentence about two things that `holds` or does not."""

    text: str
    relation: str
    subject: str
    object: str
    holds: bool


@dataclass(frozen=True)
class Count:
    """A question for the number of the things `counted`; `simple` ones only name a kind of object."""

    text: str
    counted: Things
    simple: bool

    @property
    def answer(self) -> int:
        """How many they are."""
        return len(self.counted)


@dataclass(frozen=True)
class Choice:
    """A question with two to four options, of which `options[correct]` is right; `about` are the things it is about."""

    text: str
    options: tuple[str, ...]
    correct: int
    about: Things = ()


def quadrant(thing: Thing) -> str | None:
    """Such as "top left"; None when the centre lies within two pixels of a middle line."""
    if min(abs(thing.x - MIDDLE), abs(thing.y - MIDDLE)) < FROM_MIDDLE:
        return None
    return f"{'top' if thing.y < MIDDLE else 'bottom'} {'left' if thing.x < MIDDLE else 'right'}"


def related(one: Thing, relation: str, two: Thing) -> bool | None:
    """Whether `one` is `relation` (of `RELATIONS`) `two`; None when they are too near to say."""
    axis, sign = RELATIONS[relation]
    gap = sign * (getattr(two, axis) - getattr(one, axis))
    return None if abs(gap) < MARGIN else gap > 0


def unique_things(things: Things) -> list[Thing]:
    """Those that share their colour and shape with no other."""
    names = [t.name for t in things]
    return [t for t in things if names.count(t.name) == 1]


def expressions(things: Things) -> list[Expression]:
    """All that can be said to mean one of the things and no other.

    A place or relation is only named where the noun alone would fit several things.
    """
    called: dict[str, list[Thing]] = {}
    for thing in things:
        for noun in (thing.name, thing.shape, f"{thing.colour} object", "object"):
            called.setdefault(noun, []).append(thing)
    found = []
    for noun, fitting in called.items():
        if len(fitting) == 1:
            if noun != "object":
                found.append(Expression(fitting[0], noun, "appearance"))
            continue
        for size in ("small", "large"):
            of_size = [t for t in fitting if t.size == size]
            if len(of_size) == 1:
                found.append(Expression(of_size[0], f"{size} {noun}", "appearance"))
        for end in ENDS:
            if thing := _at_end(fitting, end):
                found.append(Expression(thing, f"{end} {noun}", "place"))
        for corner in QUADRANTS:
            if thing := _in_corner(fitting, corner):
                found.append(Expression(thing, f"{noun} in the {corner}", "place"))
        for landmark in unique_things(things):
            others = [t for t in fitting if t is not landmark]
            for relation in RELATIONS if len(others) > 1 else ():
                told = [related(t, relation, landmark) for t in others]
                if None not in told and sum(told) == 1:
                    text = f"{noun} {relation} the {landmark.name}"
                    found.append(Expression(others[told.index(True)], text, "relation"))
    return found


def _at_end(things: Iterable[Thing], end: str) -> Thing | None:
    """The thing that is furthest to one end, if clearly."""
    axis, sign = ENDS[end]
    first, second = sorted(things, key=lambda t: sign * getattr(t, axis))[:2]
    return first if abs(getattr(first, axis) - getattr(second, axis)) >= MARGIN else None


def _in_corner(things: Iterable[Thing], corner: str) -> Thing | None:
    """The only thing in a quadrant, if all lie clearly in one."""
    corners = {thing: quadrant(thing) for thing in things}
    there = [thing for thing, place in corners.items() if place == corner]
    return there[0] if len(there) == 1 and None not in corners.values() else None


def statement(things: Things, rng: np.random.Generator, holds: bool, either_axis: bool = False) -> Statement | None:
    """A sentence that relates two things; None without two names.

    They are related along the axis on which they are further apart, at least ten pixels; with `either_axis` along one
    on which they are `MARGIN` apart, less than a patch.
    """
    unique = unique_things(things)
    if len(unique) < 2:
        return None
    one, two = (unique[i] for i in rng.permutation(len(unique))[:2])
    further = "x" if abs(one.x - two.x) >= abs(one.y - two.y) else "y"
    fitting = [r for r in RELATIONS if related(one, r, two) == holds and (either_axis or RELATIONS[r][0] == further)]
    relation = fitting[rng.integers(len(fitting))]
    return Statement(f"The {one.name} is {relation} the {two.name}.", relation, one.name, two.name, holds)


def counts(things: Things) -> list[Count]:
    """All questions for a number whose answer is clear: of kinds, colours, sizes, in halves, beside a thing."""
    kinds = {PLURALS[s]: [t for t in things if t.shape == s] for s in SHAPES} | {"objects": list(things)}
    found = [Count(f"How many {noun} are there?", tuple(fitting), True) for noun, fitting in kinds.items()]
    for look, values in (("colour", COLOURS), ("size", ("small", "large"))):
        for value in values:
            fitting = tuple(t for t in things if getattr(t, look) == value)
            found.append(Count(f"How many {value} objects are there?", fitting, False))
    for noun, fitting in kinds.items():
        for end, (axis, sign) in ENDS.items():
            offsets = [sign * (MIDDLE - getattr(t, axis)) for t in fitting]
            if fitting and min(map(abs, offsets)) >= FROM_MIDDLE:
                there = tuple(t for t, o in zip(fitting, offsets, strict=True) if o > 0)
                found.append(Count(f"How many {noun} are in the {end} half?", there, False))
    for landmark in unique_things(things):
        for relation in RELATIONS if len(things) > 1 else ():
            told = {t: related(t, relation, landmark) for t in things if t is not landmark}
            if None not in told.values():
                there = tuple(t for t, holds in told.items() if holds)
                found.append(Count(f"How many objects are {relation} the {landmark.name}?", there, False))
    return found


def count(things: Things, rng: np.random.Generator, simple: bool | None = None) -> Count:
    """One of `counts`, every possible answer as likely as the others; `simple` or not, if given."""
    possible = [c for c in counts(things) if simple is None or c.simple == simple]
    answers = sorted({c.answer for c in possible})
    answer = answers[rng.integers(len(answers))]
    possible = [c for c in possible if c.answer == answer]
    return possible[rng.integers(len(possible))]


def choice(things: Things, rng: np.random.Generator, correct: int) -> Choice | None:
    """A question about what is where, its right option in place `correct`; None when nothing is clear.

    Wrong options are things that are there, or their looks, as far as there are enough.
    """
    if len(things) < 2:
        return None
    asked: dict[str, list] = {}  # by kind: question, right answer, answers in the order of preference, what it is about
    names = {thing.name: None for thing in things} | {CLASSES[i]: None for i in rng.permutation(len(CLASSES))}
    for corner in QUADRANTS:
        if thing := _in_corner(things, corner):
            asked.setdefault("corner", []).append((f"What is in the {corner}?", thing.name, names, thing))
            for look, given, answers in (("shape", thing.shape, SHAPES), ("color", thing.colour, COLOURS)):
                asked.setdefault(look, []).append(
                    (f"What {look} is the object in the {corner}?", given, answers, thing)
                )
    for end in ENDS:
        if thing := _at_end(things, end):
            asked.setdefault("end", []).append((f"Which object is the {end}most?", thing.name, names, thing))
    for thing in unique_things(things):
        if quadrant(thing):
            asked.setdefault("where", []).append((f"Where is the {thing.name}?", quadrant(thing), QUADRANTS, thing))
        others = [t for t in things if t is not thing]
        for relation in RELATIONS if len(others) > 1 else ():
            told = [related(t, relation, thing) for t in others]
            if None not in told and sum(told) == 1:
                right = others[told.index(True)]
                text = f"Which object is {relation} the {thing.name}?"
                asked.setdefault("relation", []).append((text, right.name, names, right))
    if not asked:
        return None
    of_kind = asked[list(asked)[rng.integers(len(asked))]]
    text, right, answers, about = of_kind[rng.integers(len(of_kind))]
    wrong = [answer for answer in answers if answer != right][:3]
    options = [wrong[i] for i in rng.permutation(3)]
    options.insert(correct, right)
    return Choice(text, tuple(options), correct, (about,))


def option(things: Things, rng: np.random.Generator) -> Choice | None:
    """What newer benchmarks ask: one of two directions, of four captions, or of four numbers; None without two names.

    Options are in random order. A caption is only asked for where two things are level or upright, so that it is the
    one of the four that fits.
    """
    asked: dict[str, list[tuple[str, str, tuple[str, ...], Things]]] = {}
    for one, two in permutations(unique_things(things), 2):
        told = {relation: related(one, relation, two) for relation in RELATIONS}
        fitting = [relation for relation, holds in told.items() if holds]
        for relation in fitting:
            answers = tuple(direction(r) for r in RELATIONS if RELATIONS[r][0] == RELATIONS[relation][0])
            asked.setdefault("direction", []).append((where_is(one, two), direction(relation), answers, ()))
        if len(fitting) == 1:
            captions = tuple(f"The {one.name} is {relation} the {two.name}." for relation in RELATIONS)
            right = captions[list(RELATIONS).index(fitting[0])]
            asked.setdefault("caption", []).append(("Which caption fits the image?", right, captions, ()))
    if not asked:
        return None
    number = count(things, rng)
    others = [str(n) for n in rng.permutation(MAX_OBJECTS + 2).tolist() if n != number.answer]
    asked["number"] = [(number.text, str(number.answer), (str(number.answer), *others[:3]), number.counted)]
    of_kind = asked[list(asked)[rng.integers(len(asked))]]
    text, right, answers, about = of_kind[rng.integers(len(of_kind))]
    options = tuple(answers[i] for i in rng.permutation(len(answers)))
    return Choice(text, options, options.index(right), about)


def direction(relation: str) -> str:
    """A relation in a word: left, right, above, below."""
    return relation.removeprefix("to the ").removesuffix(" of")


def where_is(one: Thing, two: Thing) -> str:
    """The question that a direction answers."""
    return f"Where is the {one.name} with respect to the {two.name}?"
