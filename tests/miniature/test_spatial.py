"""What is said about scenes is read again by a small grammar of its own and checked against the masks."""

import functools
from collections import Counter

import numpy as np
import pytest

from prismatic.miniature.scenes import CLASSES, COLOURS, IMAGE_SIZE, SHAPES, scenes
from prismatic.miniature.spatial import choice, count, counts, expressions, option, statement

AXIS = {"left": 1, "right": 1, "top": 0, "bottom": 0, "above": 0, "below": 0}
NOUNS = (*CLASSES, *SHAPES, *(f"{colour} object" for colour in COLOURS), "object")
SIGN = {"left": 1, "right": -1, "top": 1, "bottom": -1, "above": 1, "below": -1}


@functools.cache
def world():
    return [s.things for s in scenes(5, 0, 400)]


def centre(thing):
    rows, columns = np.nonzero(thing.mask())
    return (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2


def before(one, two, word):
    """Whether `one` is further than `two` to the side that the word names."""
    return SIGN[word] * centre(one)[AXIS[word]] < SIGN[word] * centre(two)[AXIS[word]]


def in_half(thing, word):
    return (centre(thing)[AXIS[word]] < (IMAGE_SIZE - 1) / 2) == (SIGN[word] > 0)


def meant(text, things):
    """The things that words such as "left red circle", "crosses above the red circle" mean."""
    for relation in ("to the left of the ", "to the right of the ", "above the ", "below the "):
        if f" {relation}" in text:
            noun, landmark = text.split(f" {relation}")
            (mark,) = meant(landmark, things)
            (word,) = set(relation.split()) & set(SIGN)
            return [t for t in meant(noun, things) if t is not mark and before(t, mark, word)]
    if " in the " in text:
        noun, place = text.split(" in the ")
        return [t for t in meant(noun, things) if all(in_half(t, w) for w in place.split() if w in SIGN)]
    words = text.removeprefix("the ").split()
    found = list(things)
    for word in words:
        if word in COLOURS:
            found = [t for t in found if t.colour == word]
        elif word in ("small", "large"):
            found = [t for t in found if (np.ptp(np.argwhere(t.mask()), axis=0).max() > 10) == (word == "large")]
        elif shape := [s for s in SHAPES if word.startswith(s)]:
            found = [t for t in found if [t.shape] == shape]
        else:
            assert word.removesuffix("most") in SIGN or word in ("object", "objects"), word
    for word in (w.removesuffix("most") for w in words):
        if word in SIGN:
            found = [t for t in found if not any(before(o, t, word) for o in found if o is not t)]
    return found


def test_expressions_mean_one_thing():
    styles = Counter()
    for things in world():
        said = expressions(things)
        assert len({e.text for e in said}) == len(said)
        for e in said:
            assert meant(e.text, things) == [e.thing], e.text
            styles[e.style] += 1
            if e.style != "appearance":
                rest = e.text.split(" ", 1)[1] if e.text.split()[0] in SIGN else e.text
                noun = next(n for n in NOUNS if rest.startswith(n))
                assert len(meant(noun, things)) > 1, "the noun alone says which"
    assert set(styles) == {"place", "appearance", "relation"} and min(styles.values()) > 500


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("either_axis", [True, False])
def test_statements_hold_or_do_not(holds, either_axis):
    relations, further, gaps = Counter(), 0, []
    for number, things in enumerate(world()):
        if said := statement(things, np.random.default_rng(number), holds, either_axis):
            subject, place = said.text.removeprefix("The ").removesuffix(".").split(" is ")
            (one,), (two,) = meant(subject, things), meant(said.object, things)
            assert (one in meant(f"object {place}", things)) == holds == said.holds
            assert said.relation in place and said.subject in subject and said.object in place
            relations[said.relation] += 1
            apart = np.abs(np.subtract(centre(one), centre(two)))
            (axis,) = {AXIS[word] for word in said.relation.split() if word in AXIS}
            gaps.append(apart[axis])
            further += apart[axis] == apart.max()
    assert len(relations) == 4 and min(relations.values()) > 0.15 * sum(relations.values())
    if either_axis:
        assert abs(min(gaps) - 3) <= 0.5 and 0.5 < further / len(gaps) < 0.7
    else:
        assert abs(min(gaps) - 10) <= 0.5 and further == len(gaps)


def test_counts_are_right_and_answers_even():
    for things in world():
        for asked in counts(things):
            words = asked.text.removeprefix("How many ").removesuffix("?")
            noun = words.replace(" are there", "").replace(" are ", " ").replace(" half", "")
            assert len(meant(noun, things)) == asked.answer, asked.text
    drawn = [count(t, np.random.default_rng(i), bool(i % 2)) for i, t in enumerate(world())]
    assert all(c.simple == bool(i % 2) for i, c in enumerate(drawn))
    answers = Counter(c.answer for c in drawn)
    assert set(answers) == {0, 1, 2, 3, 4} and max(answers.values()) < 0.45 * len(drawn)


def test_one_option_is_right():
    kinds = Counter()
    for number, things in enumerate(world()):
        asked = choice(things, np.random.default_rng(number), number % 4)
        if asked is None:
            continue
        assert asked.correct == number % 4 and len(set(asked.options)) == 4
        words = asked.text.removesuffix("?")
        if words.startswith("Where is"):
            (thing,) = meant(words.removeprefix("Where is "), things)
            fitting = [thing in meant(f"object in the {place}", things) for place in asked.options]
        else:
            place = words[words.index(" in the ") :] if " in the " in words else words.split(" is ")[1]
            place = place.removeprefix("the ") + " object" if place.endswith("most") else f"object {place.strip()}"
            (thing,) = meant(place, things)
            fitting = [option in (thing.name, thing.shape, thing.colour) for option in asked.options]
        assert fitting == [i == asked.correct for i in range(4)], asked
        kinds[" ".join(words.split()[:2])] += 1
    assert len(kinds) == 5 and min(kinds.values()) > 20


def test_of_directions_captions_and_numbers_one_fits():
    kinds, places = Counter(), Counter()
    for number, things in enumerate(world()):
        asked = option(things, np.random.default_rng(number))
        if asked is None:
            continue
        words = asked.text.removesuffix("?")
        if words.startswith("Where is"):
            one, two = (
                meant(name, things)[0] for name in words.removeprefix("Where is the ").split(" with respect to the ")
            )
            fitting = [before(one, two, word) for word in asked.options]
            assert set(asked.options) in ({"left", "right"}, {"above", "below"})
        elif words.startswith("Which caption"):
            said = [caption.removesuffix(".").removeprefix("The ").split(" is ") for caption in asked.options]
            fitting = [
                meant(subject, things)[0] in meant(f"object {place}", things) and clear(subject, place, things)
                for subject, place in said
            ]
        else:
            noun = words.removeprefix("How many ").replace(" are there", "").replace(" are ", " ").replace(" half", "")
            fitting = [len(meant(noun, things)) == int(answer) for answer in asked.options]
        assert fitting == [i == asked.correct for i in range(len(asked.options))], asked
        kinds[words.split()[0]] += 1
        places[len(asked.options), asked.correct] += 1
    assert set(kinds) == {"Where", "Which", "How"} and min(kinds.values()) > 20
    assert min(places[4, i] for i in range(4)) > 20 and min(places[2, i] for i in range(2)) > 20


def clear(subject, place, things):
    """Whether two things are far enough apart, along the axis that a relation is about, to say it."""
    (one,), (two,) = meant(subject, things), meant(place.split(" the ")[-1].removeprefix("the "), things)
    (axis,) = {AXIS[word] for word in place.split() if word in AXIS}
    return abs(centre(one)[axis] - centre(two)[axis]) >= 2.5
