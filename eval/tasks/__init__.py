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
        ValueError: There is no such task, split or variant; near names are listed.
    """
    _find()
    name, *variants = name.split("+")
    name, _, split = name.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task '{name}': {suggest(name, TASKS)}")
    task = TASKS[name]
    if split and split not in task.num_examples:
        raise ValueError(f"task '{name}' has no split '{split}': choose from {', '.join(task.num_examples)}")
    fields: dict = {}
    for variant in variants:
        if variant not in task.variants:
            known = suggest(variant, task.variants) if task.variants else "it has none"
            raise ValueError(f"task '{name}' has no variant '{variant}': {known}")
        fields |= task.variants[variant]
    return replace(task, split=split or task.split, **fields)


def _find() -> None:
    for name in (*FIRST, *(module.name for module in pkgutil.iter_modules(__path__))):
        importlib.import_module(f"eval.tasks.{name}")
