"""What a mistyped name may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggest(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Returns "did you mean a or b?"; where nothing known resembles `name`, `otherwise`, or all that is known."""
    known = list(known)
    if near := get_close_matches(name, known, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}" if otherwise is None else otherwise
