"""Settings that come with this package: named models and runs, some with a part of their own for a stage."""

import functools
from pathlib import Path
from typing import Any

import yaml

from vision_backbones.names import suggest

STAGES = ("align",)  # those for which presets hold settings of their own
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@functools.cache
def read_presets(file: str) -> dict[str, dict[str, Any]]:
    """Presets by name, from a YAML file in `recipes/configs`; what begins with a dot is a part of others."""
    presets = yaml.safe_load((CONFIGS / file).read_text())
    return {name: preset for name, preset in presets.items() if not name.startswith(".")}


def find_preset(name: str, file: str, recipe: str | None = None) -> dict[str, Any]:
    """A preset by name; where the file sorts them by recipe, one of that recipe.

    Raises:
        ValueError: There is none; says which recipe has it, or names the closest.
    """
    presets = read_presets(file)
    known = presets[recipe] if recipe else presets
    if name in known:
        return known[name]
    near = suggest(name, known, otherwise=f"{CONFIGS / file} names them all")
    if recipe and (others := [f"`prismatic {other}`" for other in presets if name in presets[other]]):
        raise ValueError(f"{name!r} is a model of {' and '.join(others)}, not of `prismatic {recipe}`: {near}")
    raise ValueError(f"unknown model {name!r}: {near}")


def in_stage(preset: dict[str, Any], stage: str | None) -> dict[str, Any]:
    """Settings of a preset in a stage: what it holds under that name goes over the rest."""
    own = {key: value for key, value in preset.items() if key not in STAGES}
    return merged_settings(own, preset[stage]) if stage in preset.keys() & set(STAGES) else own


def merged_settings(settings: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them, name by name also within nested ones, of which nothing may be said."""
    nested = {key for key in settings.keys() & over.keys() if isinstance(settings[key], dict)}
    nested = {key for key in nested if isinstance(over[key], dict | None)}
    return settings | over | {key: merged_settings(settings[key], over[key] or {}) for key in nested}
