"""Measures what parsers of answers take on texts made to be slow, as they double: `python benchmarks/parsing.py`."""

import time

from prismatic.text import parsing
from vision_backbones.table import table

UNITS = ["[", "(", "-", "1", "1,", "[1, 2, ", "'", "x1:", "\\", "1e", "{1:", "not "]
LENGTHS = (2_500, 5_000, 10_000, 1_000_000)
PARSERS = {
    "parse_box": parsing.parse_box,
    "find_box": parsing.find_box,
    "parse_choice": lambda text: parsing.parse_choice(text, "ABCD"),
    "says_no": parsing.says_no,
}


def main() -> None:
    """Prints milliseconds of the slowest of the texts; four times as many at twice the length would be quadratic."""
    rows = [
        (name, *(f"{max(_milliseconds(parser, unit, length) for unit in UNITS):.2f}" for length in LENGTHS))
        for name, parser in PARSERS.items()
    ]
    print(table(rows, ("parser", *(f"{length:,}" for length in LENGTHS))))


def _milliseconds(parser, unit: str, length: int) -> float:
    text = unit * (length // len(unit))
    started = time.perf_counter()
    parser(text)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
