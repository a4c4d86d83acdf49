"""Tables in plain text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | None = None) -> str:
    """Rows in aligned columns: the first `left` (all, if None) on the left, the others, numbers, on the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = len(header) if left is None else left
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    )


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal; other numbers as they are, and "-" for None."""
    return "-" if value is None else f"{value:.1%}" if -1 <= value <= 1 else f"{value:.4g}"


def ends(interval: Sequence[float] | None) -> str:
    """An interval of fractions, as percent."""
    return "-" if interval is None else " .. ".join(percent(end) for end in interval)
