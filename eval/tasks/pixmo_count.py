"""PixMo-Count: how many there are, 2 to 10, in photographs from the web."""

from pathlib import Path

from eval.data.counts import read_counts
from eval.scoring.counting import count
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts


def read(root: Path, split: str) -> list[Example]:
    """One example a row of a copy with images."""
    return read_counts(root, "pixmo-count", ("pixmo-count",), split, "answer")


register(
    Task(
        name="pixmo-count",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=lambda example: Generate(32),
        scorer=count(),
        num_examples={"test": {"": 540}},
        files=("pixmo-count/data/test-*.parquet",),
        chance=1 / 9,
        variants={"llava": {"prompt": prompts.short_answer}},
        licence="ODC-BY",
        note="a copy with images is read; its authors give addresses, some of which are dead: copies may have fewer",
    )
)
