"""Modules of ours that are imported right after modules of others, without importing either before it is needed."""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_after: dict[str, list[str]] = {}


class _Finder(MetaPathFinder):
    """Finds the modules in `_after` as usual, and has what belongs to them imported after them."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _after else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_import_ours(module: ModuleType) -> None:
                execute(module)
                for ours in _after[name]:
                    importlib.import_module(ours)

            spec.loader.exec_module = execute_and_import_ours
        return spec


def import_after(theirs: str, *ours: str) -> None:
    """Imports modules of ours once `theirs` is imported: now if it is already, or else right after it."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _after.setdefault(theirs, []).extend(name for name in ours if name not in _after.get(theirs, []))
    if theirs in sys.modules:
        for name in ours:
            importlib.import_module(name)
