"""Templated language about scenes: questions with short answers, those of the spatial benchmarks, scenes in words.

Every question has exactly one right answer, and what decides it is where things are. Yes/no questions are balanced.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from prismatic.miniature.scenes import CLASSES, COLOURS, HALF_EXTENT, IMAGE_SIZE, SHAPES, Thing
from prismatic.miniature.spatial import choice, count, direction, expressions, option, quadrant, statement

SHORT_ANSWER = "Answer the question using a single word or phrase."
BOX_PROMPT = 'Please provide the bounding box coordinate of the region this sentence describes: "{}"'
STATEMENT_PROMPT = """Based on the image, is this statement "True" or "False"? {}
Respond with "True" or "False" directly."""
LETTERS = "ABCDEFGHIJKLMNOP"
OPTION_PROMPT = "Answer with the option's letter from the given choices directly."
MOST = 15  # the largest number that a question for a number offers
SHORT_KINDS = ("exists", "count", "color", "shape", "size", "where", "relation", "direction", "which")
SPATIAL_KINDS = ("box", "statement", "tally", "choice", "option")
KINDS = SHORT_KINDS + SPATIAL_KINDS
CELLS = 6  # cells a side of a map: one for each 8-pixel patch
LOOKS = (*COLOURS, *SHAPES, *HALF_EXTENT, "background")  # words for what a cell of a map holds


@dataclass(frozen=True)
class Question:
    """A question about one scene. `kind` is one of `KINDS`; `about` are things, if any, of which the answer tells."""

    kind: str
    text: str
    answer: str
    about: tuple[Thing, ...] = ()


def box_text(thing: Thing) -> str:
    """`[x1, y1, x2, y2]` as fractions of the image with two decimals, the way LLaVA writes boxes."""
    return str([round(edge / IMAGE_SIZE, 2) for edge in thing.box])


def with_options(question: str, options: Iterable[object]) -> str:
    """The question, its options by letter, and what to answer with."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, OPTION_PROMPT])


def questions(things: tuple[Thing, ...], rng: np.random.Generator) -> list[Question]:
    """All kinds of question that have one right answer in this scene, one of each kind, in the order of `KINDS`."""

    def pick(options):
        return options[rng.integers(len(options))]

    names = Counter(t.name for t in things)
    unique = [t for t in things if names[t.name] == 1]
    asked = []

    name = pick(sorted(names)) if rng.random() < 0.5 else pick([c for c in CLASSES if c not in names])
    asked.append(Question("exists", f"Is there a {name}?", "yes" if name in names else "no"))

    number = count(things, rng)
    asked.append(Question("count", number.text, str(number.answer), number.counted))

    for kind, attribute, other, text in (
        ("color", "colour", "shape", "What color is the {}?"),
        ("shape", "shape", "colour", "What shape is the {} object?"),
    ):
        counts = Counter(getattr(t, other) for t in things)
        clear = [t for t in things if counts[getattr(t, other)] == 1]
        if clear:
            thing = pick(clear)
            asked.append(Question(kind, text.format(getattr(thing, other)), getattr(thing, attribute), (thing,)))

    if unique:
        thing = pick(unique)
        asked.append(Question("size", f"Is the {thing.name} small or large?", thing.size, (thing,)))
    placed = [t for t in unique if quadrant(t)]
    if placed:
        thing = pick(placed)
        asked.append(Question("where", f"Where is the {thing.name}?", quadrant(thing), (thing,)))
    if told := statement(things, rng, rng.random() < 0.5):
        text = f"Is the {told.subject} {told.relation} the {told.object}?"
        asked.append(Question("relation", text, "yes" if told.holds else "no"))
    if told := statement(things, rng, True):
        text = f"Which way is the {told.subject} from the {told.object}?"
        asked.append(Question("direction", text, direction(told.relation)))
    if riddle := choice(things, rng, 0):
        asked.append(Question("which", riddle.text, riddle.options[0], riddle.about))

    said = expressions(things)
    styles = sorted({e.style for e in said})
    if said:
        style = pick(styles)
        told = pick([e for e in said if e.style == style])
        sentence = told.text if rng.random() < 0.5 else f"the {told.text}"
        asked.append(Question("box", BOX_PROMPT.format(sentence), box_text(told.thing), (told.thing,)))
    if claim := statement(things, rng, rng.random() < 0.5):
        asked.append(Question("statement", STATEMENT_PROMPT.format(claim.text), str(claim.holds)))
    tally = count(things, rng)
    asked.append(Question("tally", with_options(tally.text, range(MOST + 1)), LETTERS[tally.answer], tally.counted))
    if riddle := choice(things, rng, int(rng.integers(4))):
        asked.append(
            Question("choice", with_options(riddle.text, riddle.options), LETTERS[riddle.correct], riddle.about)
        )
    if riddle := option(things, rng):
        asked.append(
            Question("option", with_options(riddle.text, riddle.options), LETTERS[riddle.correct], riddle.about)
        )
    return asked


def prompt(question: Question) -> str:
    """What the user says: a question that wants a short answer says so, as in LLaVA's conversations."""
    return f"{question.text}\n{SHORT_ANSWER}" if question.kind in SHORT_KINDS else question.text


def describe(things: Iterable[Thing]) -> str:
    """The scene in a sentence."""
    parts = [
        f"a {t.size} {t.name} at {box_text(t)}" + (f" in the {quadrant(t)}" if quadrant(t) else "") for t in things
    ]
    return "There is " + " and ".join(parts) + "."


def cell_contents(things: tuple[Thing, ...]) -> np.ndarray:
    """What is where, as a map: the share of every cell that things of each of `LOOKS`, and the background, cover.

    Returns:
        `[CELLS * CELLS, len(LOOKS)]`, cells row by row.
    """
    contents = np.zeros((CELLS * CELLS, len(LOOKS)), np.float32)
    for thing in things:
        cover = cover_of(thing)
        for look in (thing.colour, thing.shape, thing.size):
            contents[:, LOOKS.index(look)] += cover
    contents[:, LOOKS.index("background")] = 1 - contents[:, : len(COLOURS)].sum(1)
    return contents


def cover_of(thing: Thing) -> np.ndarray:
    """The share of every cell that a thing covers, `[CELLS * CELLS]`."""
    return thing.mask().reshape(CELLS, IMAGE_SIZE // CELLS, CELLS, -1).mean((1, 3)).ravel()


def answer_priors(asked: Iterable[Question]) -> dict[str, str]:
    """The most frequent answer of each kind of question: what a model can score without looking."""
    answers = defaultdict(Counter)
    for question in asked:
        answers[question.kind][question.answer] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}
