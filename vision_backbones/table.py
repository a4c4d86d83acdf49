"""Tables in plain text, for terminals and logs."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], header: Sequence[str], *, left: int | None = None) -> str:
    """Rows in aligned columns under a header; numbers are grouped by thousands.

    Args:
        rows: cells, of any type.
        header: names of the columns.
        left: how many columns, from the first, are aligned on the left. By default those that do not hold numbers.
    """
    cells = [
        [f"{c:,}" if isinstance(c, int) else f"{c:.3g}" if isinstance(c, float) else str(c) for c in row]
        for row in rows
    ]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [
        all(isinstance(row[i], int | float) for row in rows) if left is None else i >= left for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])
