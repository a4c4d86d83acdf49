"""Names that things are asked for by: registering them, and what a mistyped one may have meant."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Returns "did you mean a or b?"; where nothing known resembles `name`, `otherwise`, or all that is known."""
    known = list(known)
    if near := get_close_matches(name, known, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}" if otherwise is None else otherwise


def take_plugins(argv: list[str]) -> tuple[list[str], list[str]]:
    """A command line without its `--plugins MODULE[,MODULE]`, wherever they stand, and all modules they name.

    Raises:
        ValueError: One names no module.
    """
    rest, names, arguments = [], [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag != "--plugins":
            rest.append(argument)
            continue
        given = value if equals else next(arguments, "")
        if not given or given.startswith("-"):
            raise ValueError("--plugins needs a module, or several with commas between them")
        names += [name.strip() for name in given.strip("[]").split(",") if name.strip()]
    return rest, names


def registered(kind: str, name: str, known: dict[str, T]) -> Callable[[T], T]:
    """Returns a decorator that puts what it decorates under `name` among what is known.

    Raises:
        ValueError: The name is taken.
    """

    def register(thing: T) -> T:
        if name in known:
            raise ValueError(f"{kind} {name!r} is already registered: choose another name")
        known[name] = thing
        return thing

    return register
