"""What `make_llm` and `make_vit` share: the way they read their settings."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import draccus

Config = TypeVar("Config")


def read_settings(config_class: type[Config], check: Callable[[Config], None]) -> Config:
    """The settings of this process's command line; errors are one line on stderr and exit status 2."""
    try:
        config = draccus.parse(config_class)
        check(config)
        return config
    except (draccus.ParsingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def check_settings(config: Any, **least: int) -> None:
    """Refuses numbers that nothing can be made with: below `least`, which is 1 for other whole numbers; rates below 0.

    Raises:
        ValueError: A setting is too small.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lowest = least.get(field.name, 0 if isinstance(value, float) or field.name == "seed" else 1)
        if isinstance(value, int | float) and value < lowest:
            raise ValueError(f"--{field.name} is {value}: expected {lowest} or more")
