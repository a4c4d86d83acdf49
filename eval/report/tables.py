"""Numbers as tables show them."""

from collections.abc import Sequence


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal; other numbers as they are, and "-" for None."""
    return "-" if value is None else f"{value:.1%}" if -1 <= value <= 1 else f"{value:.4g}"


def ends(interval: Sequence[float] | None) -> str:
    """An interval of fractions, as percent."""
    return "-" if interval is None else " .. ".join(percent(end) for end in interval)
