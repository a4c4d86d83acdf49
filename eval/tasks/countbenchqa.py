"""CountBenchQA: how many there are, 2 to 10, in pictures from the web."""

from pathlib import Path

from eval.data.counts import read_counts
from eval.scoring.counting import count
from eval.task import Example, Generate, Task, register
from eval.tasks import prompts


def read(root: Path, split: str) -> list[Example]:
    """One example a row. The caption is left out: it says how many there are."""
    return read_counts(root, "countbenchqa", ("countbenchqa", "CountBenchQA"), split, "number")


register(
    Task(
        name="countbenchqa",
        version=2,
        read=read,
        prompt=prompts.bare,
        answer=lambda example: Generate(32),
        scorer=count(),
        num_examples={"test": {"": 491}},
        files=("countbenchqa/data/test-*.parquet",),
        chance=1 / 9,
        variants={"llava": {"prompt": prompts.short_answer}},
        licence="of the data not stated",
        note="captions, which name the number, are not shown",
    )
)
