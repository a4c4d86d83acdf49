"""A model's folder with the code that it needs: it loads with `trust_remote_code=True` where this package is not."""

import ast
import json
import re
import shutil
from pathlib import Path

from prismatic.checkpoints.epoch import save_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("prismatic", "vision_backbones")
MODULES = {  # what transformers looks for in a folder, by the file that says where it is
    "config.json": {
        "AutoConfig": "prismatic.models.configuration.PrismaticConfig",
        "AutoModel": "prismatic.models.modeling.PrismaticModel",
        "AutoModelForImageTextToText": "prismatic.models.modeling.PrismaticForConditionalGeneration",
        "AutoModelForCausalLM": "prismatic.models.modeling.PrismaticForConditionalGeneration",
    },
    "processor_config.json": {
        "AutoProcessor": "prismatic.models.processing.PrismaticProcessor",
        "AutoImageProcessor": "prismatic.models.image_processing.PrismaticImageProcessor",
    },
}
LEFT_OUT = ("prismatic.models.smollm2",)  # reads a file of another package, which nobody asks of a saved model
ITSELF = "this_module"
NOTE = '"""Copied by `prismatic export --format portable` from {name} {version}: do not edit."""\n\n'


def save_portable(model, processor, out: Path) -> Path:
    """Writes model, processor and code to the new folder `out`, all or nothing.

    Every module that is needed becomes a file of its own in the folder, `prismatic.models.modeling` for one
    `prismatic_models_modeling.py`, whose imports name the other files; what registers classes is left out.

    Raises:
        ValueError: the folder exists.
    """
    from importlib.metadata import version

    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    folder = save_model(model, processor, out.with_name(f".{out.name}.portable"), replace=True)
    try:
        for name in needed():
            note = NOTE.format(name=name, version=version("prismatic-locality"))
            (folder / f"{flat(name)}.py").write_text(note + rewritten(name), encoding="utf-8")
        for file, classes in MODULES.items():
            places = {
                auto: flat(place.rpartition(".")[0]) + "." + place.rpartition(".")[2] for auto, place in classes.items()
            }
            content = json.loads((folder / file).read_text())
            if file == "processor_config.json" and "image_processor" in content:
                content["image_processor"]["auto_map"] = {"AutoImageProcessor": places["AutoImageProcessor"]}
            (folder / file).write_text(json.dumps(content | {"auto_map": places}, indent=1) + "\n")
        return folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def needed() -> list[str]:
    """Names of the modules that saved models need, in alphabetical order."""
    todo, found = [place.rpartition(".")[0] for classes in MODULES.values() for place in classes.values()], set()
    while todo:
        name = todo.pop()
        if name not in found and name not in LEFT_OUT:
            found.add(name)
            todo += [m for node in _imports(ast.parse(_file(name).read_text())) for m in _targets(node).values()]
    return sorted(found)


def rewritten(name: str) -> str:
    """The source of a module with the imports that hold in the folder, and without what registers classes."""
    source = _file(name).read_text()
    tree = ast.parse(source)
    lines = source.splitlines()
    for node in sorted(_imports(tree) + _registrations(tree), key=lambda node: -node.lineno):
        new = _import_in_folder(node) if isinstance(node, ast.ImportFrom) else []
        lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in new]
    return "\n".join([*lines, "", "import sys  # for modules that import this one as a whole", "",
                      f"{ITSELF} = sys.modules[__name__]", ""])  # fmt: skip


def flat(name: str) -> str:
    """The file of a module in the folder, without its ending."""
    return name.replace(".", "_")


def _file(name: str) -> Path | None:
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(tree: ast.Module) -> list[ast.ImportFrom]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [node for node in found if (node.module or "").partition(".")[0] in PACKAGES]


def _targets(node: ast.ImportFrom) -> dict[str, str]:
    """The module that each imported name is, or is in."""
    inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: module if _file(module) else node.module for name, module in inside.items()}


def _import_in_folder(node: ast.ImportFrom) -> list[str]:
    lines = []
    for alias, module in zip(node.names, _targets(node).values(), strict=True):
        as_whole = module != node.module
        if module in LEFT_OUT:
            continue
        name = alias.asname or alias.name
        what = f"{ITSELF} as {name}" if as_whole else alias.name + (f" as {name}" if alias.asname else "")
        lines.append(f"from .{flat(module)} import {what}")
    return lines or ["pass"]


def _registrations(tree: ast.Module) -> list[ast.stmt]:
    """Statements of a module that tell transformers or timm of its classes."""
    called = re.compile(r"\b(register|import_after)\(|_MAPPING_NAMES\b")
    return [node for node in tree.body if isinstance(node, ast.Expr | ast.For) and called.search(ast.unparse(node))]
