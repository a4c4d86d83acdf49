"""The shipped benchmarks, one declaration a file: a new file is a new benchmark."""

import importlib
import pkgutil
from dataclasses import replace

from eval.task import TASKS, Task
from vision_backbones.names import suggest

FIRST = ("refcoco", "ocid_ref", "tallyqa", "vsr", "ai2d")  # the paper's


def list_tasks() -> list[Task]:
    """All tasks, those of the paper first."""
    _find()
    return list(TASKS.values())


def get_task(name: str) -> Task:
    """The task called `name`; `name:split` for another split than its default, `+variant` behind it to ask otherwise.

    Raises:
        ValueError: There is no such task, split or variant, or a variant is named twice; near names are listed.
    """
    name, split, variants = parted(name)
    task = TASKS[name]
    fields = dict(task.of_splits.get(split, {}))
    for variant in task.variants:  # in this order, whatever that of the name is
        fields |= task.variants[variant] if variant in variants else {}
    return replace(task, split=split, **fields)


def parted(name: str) -> tuple[str, str, frozenset[str]]:
    """What a user's name of a task stands for: task, split and variants, the same for all names of the same.

    Raises:
        ValueError: As `get_task`.
    """
    _find()
    key, (name, *variants) = name, name.split("+")
    name, _, split = name.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}': {suggest(name, TASKS)}")
    task = TASKS[name]
    if split and split not in task.num_examples:
        raise ValueError(f"task '{name}' has no split '{split}': choose from {', '.join(task.num_examples)}")
    for variant in variants:
        if variant not in task.variants:
            known = suggest(variant, task.variants) if task.variants else "it has none"
            raise ValueError(f"task '{name}' has no variant '{variant}': {known}")
    if len(set(variants)) < len(variants):
        raise ValueError(f"'{key}' names a variant more than once: name each once")
    return name, split or task.split, frozenset(variants)


def _find() -> None:
    for name in (*FIRST, *(module.name for module in pkgutil.iter_modules(__path__))):
        importlib.import_module(f"eval.tasks.{name}")
