"""Five floors: a file imports from its own floor and from those below, and no files import each other in a circle."""

import ast

from golden_cases import ROOT

FLOORS = ("vision_backbones", "prismatic", "eval", "recipes")


def modules():
    """Every module of ours by name, and what it imports of ours, late imports included."""
    paths = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    known = set(names.values())
    found = {}
    for path, name in names.items():
        asked = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: a relative import"
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= parts if parts <= known else parts | {node.module}
        found[name] = (asked & known) - {name}
    return found


def test_no_file_imports_from_a_higher_floor():
    floor = {name: FLOORS.index(name.partition(".")[0]) for name in modules()}
    upward = [
        f"{name} -> {other}" for name, asked in modules().items() for other in asked if floor[other] > floor[name]
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    left = modules()
    while free := {name for name, asked in left.items() if not asked & left.keys()}:
        left = {name: asked for name, asked in left.items() if name not in free}
    assert not left


def test_mains_of_recipes_read_from_top_to_bottom():
    mains = {}
    for path in sorted((ROOT / "recipes").glob("*.py")):
        found = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "main"]
        mains.update((path.stem, node) for node in found)
    assert {"finetune", "align", "mim", "classify", "probe", "evaluate"} <= mains.keys()
    for name, main in mains.items():
        assert main.end_lineno - main.lineno < 60, f"recipes/{name}.py: main has more than 60 lines"
        inside = [node.name for node in ast.walk(main) if isinstance(node, ast.FunctionDef) and node is not main]
        assert not inside, f"recipes/{name}.py: main defines {', '.join(inside)}"
