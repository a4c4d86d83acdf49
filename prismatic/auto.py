"""Makes transformers' Auto classes know our models without importing either before it is needed.

Each of our modules registers what it defines when it is imported. Here it is made sure of that whoever imports one of
transformers' modules of Auto classes imports ours with it.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OURS = {
    "transformers.models.auto.configuration_auto": "prismatic.models.configuration",
    "transformers.models.auto.image_processing_auto": "prismatic.models.image_processing",
    "transformers.models.auto.processing_auto": "prismatic.models.processing",
    "transformers.models.auto.modeling_auto": "prismatic.models.modeling",
}


class _Finder(MetaPathFinder):
    """Finds the modules in `OURS` as usual, and has what belongs to them imported after them."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in OURS else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_import_ours(module: ModuleType) -> None:
                execute(module)
                importlib.import_module(OURS[name])

            spec.loader.exec_module = execute_and_import_ours
        return spec


def register() -> None:
    """Registers now what is asked for already, and the rest when it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for theirs, ours in OURS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
