"""Names that things are asked for by: registering them, and what a mistyped one may have meant."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Returns "did you mean a or b?"; where nothing known resembles `name`, `otherwise`, or all that is known."""
    known = list(known)
    if near := get_close_matches(name, known, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}" if otherwise is None else otherwise


def registered(kind: str, name: str, known: dict[str, T]) -> Callable[[T], T]:
    """Returns a decorator that puts what it decorates under `name` among what is known.

    Raises:
        ValueError: The name is taken.
    """

    def register(thing: T) -> T:
        if name in known:
            raise ValueError(f"{kind} {name!r} is there already: choose another name")
        known[name] = thing
        return thing

    return register
