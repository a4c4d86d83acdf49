"""Settings that come with this package: named models and alignments, some with a part of their own for a stage."""

import functools
from pathlib import Path
from typing import Any

import yaml

STAGES = ("align",)  # those for which presets hold settings of their own
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@functools.cache
def read_presets(file: str) -> dict[str, dict[str, Any]]:
    """Presets by name, from a YAML file in `recipes/configs`; what begins with a dot is a part of others."""
    presets = yaml.safe_load((CONFIGS / file).read_text())
    return {name: preset for name, preset in presets.items() if not name.startswith(".")}


def in_stage(preset: dict[str, Any], stage: str | None) -> dict[str, Any]:
    """Settings of a preset in a stage: what it holds under that name goes over the rest."""
    own = {key: value for key, value in preset.items() if key not in STAGES}
    return merged_settings(own, preset[stage]) if stage in preset.keys() & set(STAGES) else own


def merged_settings(settings: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them, name by name also within nested ones, of which nothing may be said."""
    nested = {key for key in settings.keys() & over.keys() if isinstance(settings[key], dict)}
    nested = {key for key in nested if isinstance(over[key], dict | None)}
    return settings | over | {key: merged_settings(settings[key], over[key] or {}) for key in nested}
