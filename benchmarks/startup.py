"""Measures how long commands take to answer: `python benchmarks/startup.py`."""

import subprocess
import sys
import time

from prismatic.training.report import table

COMMANDS = {
    "python recipes/finetune.py --help": (["recipes/finetune.py", "--help"], 2.0),
    "import vision_backbones and list": (["-c", "import vision_backbones; vision_backbones.list_backbones()"], 0.3),
    "import prismatic": (["-c", "import prismatic"], None),
}


def main() -> None:
    """Prints the best of five runs of each command, less the start of Python itself."""
    bare = min(_seconds(["-c", "pass"]) for _ in range(5))
    rows = [
        (name, min(_seconds(arguments) for _ in range(5)) - bare, "" if limit is None else f"{limit} s")
        for name, (arguments, limit) in COMMANDS.items()
    ]
    print(table(rows, ("command", "seconds", "target")))


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
