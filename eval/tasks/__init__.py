"""The shipped benchmarks, one declaration a file: a new file is a new benchmark."""

import importlib
import pkgutil
from dataclasses import replace
from difflib import get_close_matches

from eval.task import TASKS, Task

FIRST = ("refcoco", "ocid_ref", "tallyqa", "vsr", "ai2d")  # the paper's


def list_tasks() -> list[Task]:
    """All tasks, those of the paper first."""
    _find()
    return list(TASKS.values())


def get_task(name: str) -> Task:
    """The task called `name`, or `name:split` for another split than its default.

    Raises:
        ValueError: There is no such task or split; near names are listed.
    """
    _find()
    name, _, split = name.partition(":")
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(TASKS)}"
        raise ValueError(f"unknown task '{name}': {hint}")
    task = TASKS[name]
    if split and split not in task.num_examples:
        raise ValueError(f"task '{name}' has no split '{split}': choose from {', '.join(task.num_examples)}")
    return replace(task, split=split or task.split)


def _find() -> None:
    for name in (*FIRST, *(module.name for module in pkgutil.iter_modules(__path__))):
        importlib.import_module(f"eval.tasks.{name}")
