"""How the command line, a YAML file and named presets make up a recipe's settings.

Lives here and not in `prismatic`, whose import brings torch and transformers: `--help` must answer at once.
"""

import contextlib
import dataclasses
import io
import json
import math
import operator
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml

from recipes.config.choices import choices_of, choose
from recipes.config.presets import CONFIGS, find_preset, in_stage, merged_settings
from vision_backbones.names import suggest, take_plugins

MOST_VALUES = 10_000  # of a settings file
INSTEAD = ("data.annotations", "data.sources")  # whichever is given last is meant
QUOTED = r"[][{}#&*!|>%`\"']|:"  # characters that mean something in YAML
RENAMED = {"embedded_seeds": "bundled_seeds"}  # settings of earlier versions: what they are called now


def unknown(kind: str, name: str, known) -> ValueError:
    """A ValueError that names the closest known names."""
    near = suggest(name, known, otherwise="")
    return ValueError(f"unknown {kind} {name!r}{near and f': {near}'}")


def parse(
    config_class,
    argv: list[str],
    *,
    default: str,
    named: str | None = None,
    recipe: str | None = None,
    model_first: bool = False,
    check: Callable[[Any], None],
):
    """The configuration of a command line; errors are one line on stderr and exit status 2.

    Args:
        config_class: dataclass of the settings.
        argv: the command line.
        default: YAML file in `recipes/configs` that is read when neither --config_path nor --model is given.
        named: YAML file in `recipes/configs` of the presets that --model names; without one it is an ordinary setting.
            What a preset has under the name of a stage holds with that --stage.
        recipe: whose presets are meant, where the file sorts them by recipe.
        model_first: the model that is talked with may come first, without its flag, and there has to be one.
        check: raises ValueError for values that make no sense.
    """
    if model_first and argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    try:
        config = _parse(config_class, argv, default, named, recipe)
        _check_numbers(config)
        if model_first and not config.model:
            raise ValueError("no model: give a run, a model's folder, miniature or a Hugging Face id first")
        check(config)
        return config
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_numbers(config, prefix: str = "") -> None:
    """Raises ValueError for a number that is not finite, and for a seed that numpy does not take."""
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{prefix}{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{prefix}{name} is {number}: expected a finite number")
        if name == "seed" and value is not None and not 0 <= value < 2**32:
            raise ValueError(f"--{prefix}{name} is {value}: expected 0 to {2**32 - 1}")


def check_least(config, least: int, *names: str) -> None:
    """Raises ValueError for a setting that is less than it may be; None is no number."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < least:
            raise ValueError(f"--{name} is {value:g}: expected {least} or more")


def check_positive(config, names: Sequence[str]) -> None:
    """Raises ValueError for a setting that is not positive where it must be; null is left to its meaning."""
    for name in names:
        value = operator.attrgetter(name)(config)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} is {value}: expected more than 0")
    if config.max_steps is not None and config.max_steps < 1:
        raise ValueError(f"--max_steps is {config.max_steps}: expected at least 1, or null for all steps of the epochs")


def _parse(config_class, argv: list[str], default: str, named: str | None, recipe: str | None):
    """Named preset < YAML file < command line."""
    argv, plugins = take_plugins(argv)
    given, rest = _split(_renamed(argv) + (["--plugins", ",".join(plugins)] if plugins else []))
    fields = _flags(config_class)
    for flag in (a.split("=")[0] for a in rest if a.startswith("--")):
        if flag[2:] not in {*fields, "help"}:
            raise unknown("setting", flag, [f"--{f}" for f in fields])
        if inner := [f"--{f}" for f in fields if f.startswith(f"{flag[2:]}.")]:
            raise ValueError(f"{flag} is a group of settings: set {', '.join(inner)}")
    path = given.get("config_path")
    if path is None and "model" not in given:
        path = CONFIGS / default
    elif path and not Path(path).exists() and (CONFIGS / Path(path).name).is_file():
        path = CONFIGS / Path(path).name  # those that come with the package are found from any folder
    settings = {RENAMED.get(k, k): v for k, v in (_read_settings(Path(path)) if path else {}).items()}
    for key in _flatten(settings):
        if key not in fields:
            raise unknown(f"setting in {path}", key, fields)
    name = given.get("model", settings.get("model"))
    if not isinstance(name, str | None):
        raise ValueError(f"model is {name!r}: expected a name")
    if name is not None:
        preset = find_preset(name, named, recipe) if named else {}
        preset = _without_other(in_stage(preset, given.get("stage", settings.get("stage"))), _flatten(settings))
        settings = merged_settings(preset, settings) | {"model": name}
    nested = {flag.partition(".")[0] for flag in fields if "." in flag}
    settings = {key: value for key, value in settings.items() if not (value is None and key in nested)}
    settings = _without_other(settings, [flag.split("=")[0][2:] for flag in rest if flag.startswith("--")])
    for name, allowed in choices_of(config_class).items():
        rest, values = _without(rest, f"--{name}")
        choose(settings, name, values, allowed)
    rest = ["--help"] if {"-h", "--help"} & set(rest) else _listed(config_class, rest)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as merged:
        yaml.safe_dump(settings, merged)
        merged.flush()
        said = io.StringIO()
        prog = f"prismatic {config_class.__name__.removesuffix('Config').lower()}"
        try:
            with contextlib.redirect_stderr(said):
                return draccus.parse(config_class, config_path=merged.name, args=rest, prog=prog)
        except draccus.ParsingError as error:
            raise ValueError(" ".join(str(error).split())) from None
        except SystemExit as end:
            if not end.code:
                raise
            raise ValueError(said.getvalue().rpartition("error: ")[2].strip()) from None


def _without_other(settings: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Settings without the one of `INSTEAD` that is not given, where the other is."""
    for name, other in (INSTEAD, INSTEAD[::-1]):
        group, _, last = other.partition(".")
        if name in given and other not in given and isinstance(settings.get(group), dict):
            settings = settings | {group: {key: value for key, value in settings[group].items() if key != last}}
    return settings


def _renamed(argv: list[str]) -> list[str]:
    """The arguments with today's names of settings; one line of notice for each that was renamed."""
    found = []
    for argument in argv:
        name, *value = argument.split("=", 1)
        if name[2:] in RENAMED and name.startswith("--"):
            print(f"note: {name} is called --{RENAMED[name[2:]]} now", file=sys.stderr)
            argument = "=".join([f"--{RENAMED[name[2:]]}", *value])
        found.append(argument)
    return found


def _read_settings(path: Path) -> dict[str, Any]:
    """Settings in a YAML file: plain values by name. Tags that make Python objects are refused, and run nothing."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = suggest(path.name, sorted(file.name for file in CONFIGS.glob("*.yaml")))
        raise ValueError(f"no settings file {path}; of those that come with the package, {near}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is refused: {reason}; expected YAML of plain values, settings by name") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} holds {ascii(settings)[:80]}; expected settings by name, such as seed: 7")
    values = [settings]
    for number, value in enumerate(values):  # which grows; aliases may stand for themselves, or for billions of values
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if number == MOST_VALUES:
            raise ValueError(f"{path} is refused: it holds more than {MOST_VALUES:,} values, or refers to itself")
    return settings


def _listed(config_class, argv: list[str]) -> list[str]:
    """Values of list settings in brackets, so that `--plugins a,b` means `--plugins [a,b]`."""
    lists = {f"--{name}" for name in _flags(config_class) if isinstance(_default(config_class, name), list)}
    argv = [part for a in argv for part in (a.split("=", 1) if a.split("=")[0] in lists else [a])]
    return [
        _bracketed(value) if flag in lists and not value.startswith("[") else value
        for flag, value in zip(["", *argv], argv, strict=False)
    ]


def _bracketed(value: str) -> str:
    """A YAML list of values between commas; those are quoted that YAML would not take as they are."""
    return f"[{', '.join(json.dumps(part) if re.search(QUOTED, part) else part for part in value.split(','))}]"


def _without(argv: list[str], flag: str) -> tuple[list[str], list[str]]:
    """The arguments without those of a flag, and the flag's values."""
    rest, values, arguments = [], [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != flag:
            rest.append(argument)
        elif (given := value if equals else next(arguments, None)) is None:
            raise ValueError(f"{flag} needs a value")
        else:
            values.append(given)
    return rest, values


def _default(config_class, name: str):
    return operator.attrgetter(name)(config_class())


def _split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """`--config_path` and `--model` apart from the other arguments, and `--stage` besides: presets ask for it."""
    given = {}
    for name in ("config_path", "model", "stage"):
        rest, values = _without(argv, f"--{name}")
        if values:
            given[name] = values[-1]
        argv = argv if name == "stage" else rest
    return given, argv


def _flags(config_class, prefix: str = "") -> list[str]:
    names = []
    for f in dataclasses.fields(config_class):
        nested = dataclasses.is_dataclass(f.type)
        names += [f"{prefix}{f.name}"] + (_flags(f.type, f"{prefix}{f.name}.") if nested else [])
    return names


def _flatten(settings: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in settings.items():
        keys += [f"{prefix}{key}"] + (_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [])
    return keys
