"""Which examples are evaluated, and whether all that is needed lies on disk: to be known before a model is loaded."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from eval.data import embedded
from eval.scoring.units import units
from eval.task import Example, Task

SEED = 21


def load_examples(
    task: Task, root: Path, *, slim: bool = False, limit: int | None = None, allow_partial: bool = False
) -> list[Example]:
    """The examples to evaluate, after their number and images have been checked.

    Args:
        task: What to read, and of which split.
        root: Data root.
        slim: Only the task's slim variant.
        limit: Only the first so many, in the order of `seeded_order`; of questions that count together all or none.
        allow_partial: Accept another number of examples than the official one.

    Raises:
        ValueError: Data is missing or malformed, or not as many examples as expected are there.
    """
    examples = task.read(root, task.split)
    check_counts(task, examples, root=root, allow_partial=allow_partial)
    groups, every = task.scorer.groups, examples
    if slim:
        examples = slim_subset(examples, task.slim, groups)
    if limit is not None:
        examples = (examples if slim else seeded_order(examples, groups))[:limit]
    examples = whole_groups(examples, every, groups)
    check_images(task, examples, root)
    return examples


def seeded_order(examples: Sequence[Example], groups: Sequence[str] = ()) -> list[Example]:
    """The examples in a random order that depends on nothing but their number, those of common `groups` side by side.

    Args:
        examples: In the order of the data set.
        groups: Names in `info`, as in `Scorer.groups`.
    """
    order = list(examples)
    random.Random(SEED).shuffle(order)
    firsts = _units(order, groups)
    return [order[number] for number in sorted(range(len(order)), key=firsts.__getitem__)] if groups else order


def slim_subset(examples: Sequence[Example], count: int, groups: Sequence[str] = ()) -> list[Example]:
    """The first `count` examples of each subset, in seeded order."""
    taken, kept = Counter(), []
    for example in seeded_order(examples, groups):
        if taken[example.subset] < count:
            taken[example.subset] += 1
            kept.append(example)
    return kept


def whole_groups(kept: Sequence[Example], every: Sequence[Example], groups: Sequence[str]) -> list[Example]:
    """Those of the kept examples whose groups were kept whole; where none was, the whole groups of the first."""
    if not groups or len(kept) == len(every):
        return list(kept)
    firsts, ids = _units(every, groups), {example.id for example in kept}
    torn = {first for first, example in zip(firsts, every, strict=True) if example.id not in ids}
    unit = dict(zip((example.id for example in every), firsts, strict=True))
    if all(unit[example.id] in torn for example in kept):
        return [example for example in every if kept and unit[example.id] == unit[kept[0].id]]
    return [example for example in kept if unit[example.id] not in torn]


def _units(examples: Sequence[Example], groups: Sequence[str]) -> list[int]:
    return units([[(name, example.info[name]) for name in groups] for example in examples])


def check_counts(
    task: Task, examples: Sequence[Example], *, root: Path | None = None, allow_partial: bool = False
) -> None:
    """Compares the number of examples, and with a data root what else the task knows of its files, with the official.

    Raises:
        ValueError: The numbers differ (unless partial data is allowed), nothing was read, or an id occurs twice.
    """
    if not examples:
        raise ValueError(f"{task.name}:{task.split} has no examples: its files contain none of this split")
    twice = [id for id, count in Counter(example.id for example in examples).items() if count > 1]
    if twice:
        raise ValueError(f"{task.name}:{task.split}: {len(twice)} ids occur more than once, the first is '{twice[0]}'")
    found = Counter(example.subset for example in examples)
    expected = task.num_examples[task.split]
    wrong = [
        f"{subset or 'all'}: expected {count:,}, got {found[subset] if subset else len(examples):,}"
        for subset, count in expected.items()
        if count != (found[subset] if subset else len(examples))
    ]
    if task.lacking and root is not None and not allow_partial:
        wrong += task.lacking(root, task.split, examples)
    if wrong and not allow_partial:
        raise ValueError(
            f"{task.name}:{task.split} does not have the official number of examples ({'; '.join(wrong)}): complete "
            f"the data (python -m eval verify {task.name}), or pass --allow_partial to evaluate what is there"
        )


def check_images(task: Task, examples: Sequence[Example], root: Path) -> None:
    """Checks that every image is there.

    Raises:
        ValueError: Images are missing: how many, and the first ten.
    """
    images = dict.fromkeys(image for example in examples for image in example.images)
    missing = [image for image in images if not embedded.is_there(root, image)]
    if missing:
        listed = "\n  ".join(str(root / path) for path in missing[:10])
        rest = f"\n  ... and {len(missing) - 10:,} more" if len(missing) > 10 else ""
        raise ValueError(
            f"{task.name}:{task.split}: {len(missing):,} of {len(images):,} images are missing; "
            f"fetch them with python -m eval prepare {task.name} --data_root {root}\n  {listed}{rest}"
        )


def majority_share(examples: Sequence[Example]) -> float | None:
    """Share of the commonest answer among these examples; None where answers are boxes or lists."""
    answers = defaultdict(int)
    for example in examples:
        if not isinstance(example.answer, str):
            return None
        answers[example.answer] += 1
    return max(answers.values()) / len(examples)


def without_area(examples: Sequence[Example]) -> int:
    """Number of examples whose true box has no area, so that no answer can be right."""
    numbers = [e.answer for e in examples if isinstance(e.answer, list | tuple) and len(e.answer) == 4]
    boxes = [box for box in numbers if all(isinstance(value, int | float) for value in box)]
    return sum(x2 <= x1 or y2 <= y1 for x1, y1, x2, y2 in boxes)
