"""Model folders of strangers: one that names Python code of its own is refused before anything else is read of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of transformers and peft, those in which `auto_map` names classes in files of the folder or in another repository.
FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
PARTS = ("vision_backbone", "llm", "projector", "image_resize_strategy", "image_size", "prompt_style", "init_from")


def refuse_code(folder: Path) -> Path:
    """The folder, after every configuration file in it that could name code has been checked.

    Raises:
        ValueError: One does (nothing was run or imported), or is not a JSON object.
    """
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        for key, value in _entries(read_object(file)):
            # peft imports the module that `megatron_core` names where `megatron_config` is given.
            if value and key in ("auto_map", "megatron_config"):
                raise ValueError(
                    f"{file} is refused: its entry '{key}' names Python code to run ({ascii(value)[:120]}). Nothing "
                    "was run. If transformers knows this kind of model by itself, remove the entry; else convert the "
                    "model with its own code first"
                )
    return folder


def read_object(file: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        ValueError: It holds none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}): save or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, expected an object: save or download it again")
    return content


def check_parts_named(parts: Any, where: Path) -> dict[str, str | int | None]:
    """The arguments of `prismatic.models.load.start`, as a file holds them: names, and a size in pixels.

    Raises:
        ValueError: There is anything else among them.
    """
    if not isinstance(parts, dict):
        raise ValueError(f"{where} holds {ascii(parts)[:80]}, expected an object of {', '.join(PARTS)}")
    for key, value in parts.items():
        size = key == "image_size"
        if key not in PARTS or not isinstance(value, int if size else str) and value is not None:
            raise ValueError(
                f"{where} is refused: {ascii(key)} is {ascii(value)[:80]}, expected "
                + (f"{'pixels' if size else 'a name'}" if key in PARTS else f"nothing but {', '.join(PARTS)}")
            )
    return parts


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value
