"""Other VLMs in the evaluation: pictures encoded once and prompts read once, against batches and one at a time.

`python benchmarks/other_models.py FOLDER ...` takes image-text-to-text models of transformers, as `save_pretrained`
leaves them, and does nothing without one. Answers of the three ways must be equal.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eval.engine import Question
from eval.generate_engine import load_engine
from eval.task import Choose, Generate
from prismatic.training import loop
from vision_backbones.table import table

PICTURES, EACH, BATCH = 4, 12, 24
KINDS = {
    "box": Generate(16),
    "letter": Choose(tuple("ABCD")),
    "sentence": Choose(("a red circle", "a blue square of some size", "nothing of the kind", "two yellow crosses")),
}


def measure(folder: str) -> list[list[str]]:
    """A row for each kind of question."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (256, 256, 3), dtype=np.uint8)) for _ in range(PICTURES)]
    rows = []
    for name, kind in KINDS.items():
        asked = [
            Question(n, f"Where is object {i}, and what is it?", kind) for n in range(PICTURES) for i in range(EACH)
        ]
        speed, said = {}, {}
        for way, strict in (("one at a time", True), ("batches", False), ("shared", False)):
            engine = load_engine(folder, dtype=torch.float32, device="cpu", batch_size=BATCH, strict=strict)
            if way == "batches":
                engine.shared.encodes_once = engine.shared.reads_once = False
            engine.answer(pictures, asked[: BATCH if way != "one at a time" else 2])
            started = time.perf_counter()
            said[way] = [answer.text for answer in engine.answer(pictures, asked)]
            speed[way] = len(asked) / (time.perf_counter() - started)
        assert said["one at a time"] == said["batches"] == said["shared"], f"answers of {name} differ"
        shares = speed["shared"] / speed["batches"], speed["shared"] / speed["one at a time"]
        rows.append([Path(folder).name, name, *(f"{speed[way]:.1f}" for way in speed), *(f"{s:.2f}" for s in shares)])
    return rows


def main() -> None:
    """Prints the table."""
    loop.launch("fp32", [], ".")
    rows = [row for folder in sys.argv[1:] for row in measure(folder)]
    names = ["model", "answer", "one/s", "batches/s", "shared/s", "shared/batches", "shared/one"]
    print(table(rows, names) if rows else "no folder of a model is given")


if __name__ == "__main__":
    main()
