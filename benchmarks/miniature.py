"""Measures how fast the miniature world is drawn and written, on one core: `python benchmarks/miniature.py`."""

import tempfile
import time
from pathlib import Path

from prismatic.miniature.llava_writer import HELD_OUT_SCENES, write_llava
from prismatic.miniature.scenes import scenes
from vision_backbones.table import table

COUNT = 1500


def main() -> None:
    """Prints scenes a second, for drawing alone and with questions, PNG files and json."""
    started = time.perf_counter()
    for _ in scenes(0, 0, COUNT):
        pass
    drawn = COUNT / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_llava(Path(folder) / "world", COUNT)
        written = (COUNT + HELD_OUT_SCENES) / (time.perf_counter() - started)
    print(
        table(
            [("drawn", drawn, 300), ("drawn and written as LLaVA data", written, 300)],
            ("scenes a second", "", "target"),
        )
    )


if __name__ == "__main__":
    main()
