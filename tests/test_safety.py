"""No source file reads what could run code: found in the syntax tree, but for a few reviewed places."""

import ast
from pathlib import Path

import pytest
from golden_cases import ROOT

FOLDERS = ("prismatic", "vision_backbones", "recipes", "eval", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# What is refused at these places is allowed: file and call, with the reason.
REVIEWED = {
    ("eval/data/restricted_pickle.py", "pickle._Unpickler"): "refuses every global",
    ("prismatic/miniature/benchmarks.py", "pickle.dumps"): "writes RefCOCO's format",
    ("vision_backbones/registry.py", "importlib.import_module"): "--plugins, named by the user on the command line",
    ("vision_backbones/registry.py", "point.load"): "entry points of packages that the user installed",
    ("vision_backbones/safe_images.py", "Image.open"): "the one place that opens images, within bounds",
    ("prismatic/__init__.py", "importlib.import_module"): "our own modules, by a table in the file",
    ("vision_backbones/on_import.py", "importlib.import_module"): "our own modules, by a table in prismatic/auto.py",
    ("eval/tasks/__init__.py", "importlib.import_module"): "this package's own tasks",
    ("recipes/cli.py", "import runpy"): "runs the modules of the jobs in a table in the file",
    ("recipes/cli.py", "runpy.run_module"): "the same",
    ("prismatic/__main__.py", "import runpy"): "runs the recipes' command",
    ("prismatic/__main__.py", "runpy.run_module"): "the same",
    ("recipes/reproduce/job.py", "import runpy"): "runs the recipes that plan.py names",
    ("recipes/reproduce/job.py", "runpy.run_module"): "the same",
}
MODULES = {"joblib", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "imp", "runpy", "code"}
NAMES = {"eval", "exec", "compile", "__import__", "execfile"}
IMPORTERS = {"import_module", "exec_module", "spec_from_file_location", "run_path", "run_module", "load_module"}
YAML_SAFE = {"safe_load", "safe_load_all", "safe_dump", "dump", "YAMLError", "SafeLoader", "CSafeLoader"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def keyword(call: ast.Call, name: str):
    return next((word.value for word in call.keywords if word.arg == name), None)


def constant(node) -> object:
    return node.value if isinstance(node, ast.Constant) else ...


def unsafe(tree: ast.AST):
    """Line and name of what a syntax tree does unsafely."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in MODULES or name.startswith("pickle.") or name in ("os.system", "os.popen"):
                    yield node.lineno, f"import {name}"
        elif isinstance(node, ast.Attribute) and dotted(node).startswith("pickle."):
            if node.attr not in ("UnpicklingError", "PicklingError"):
                yield node.lineno, dotted(node)
        elif isinstance(node, ast.Attribute) and dotted(node.value) == "yaml" and node.attr not in YAML_SAFE:
            yield node.lineno, dotted(node)
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell"):
            if constant(node.value) is not False:
                yield node.value.lineno, node.arg
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if constant(key) in ("trust_remote_code", "shell") and constant(value) is not False:
                    yield node.lineno, constant(key)
        elif isinstance(node, ast.Call):
            yield from unsafe_call(node, dotted(node.func))


def unsafe_call(node: ast.Call, name: str):
    last = name.rpartition(".")[2]
    if name in NAMES or last in IMPORTERS or name in ("os.system", "os.popen") or name.startswith("os.exec"):
        yield node.lineno, name
    if name == "torch.load" and constant(keyword(node, "weights_only")) is not True:
        yield node.lineno, name
    if name in ("torch.jit.load", "torch.package.PackageImporter", "torch.hub.load"):
        yield node.lineno, name
    if name in ("np.load", "numpy.load", "np.fromfile") and constant(keyword(node, "allow_pickle")) is not False:
        yield node.lineno, name
    if keyword(node, "allow_pickle") is not None and constant(keyword(node, "allow_pickle")) is not False:
        yield node.lineno, f"{name}(allow_pickle)"
    if last in ("extractall", "unpack_archive", "extract"):
        yield node.lineno, name
    if name == "Image.open" or last == "open_url":
        yield node.lineno, name
    if last == "load" and name.startswith("point."):
        yield node.lineno, name
    if last == "from_pretrained" and name.split(".")[0].startswith("Auto"):
        spread = [word.value for word in node.keywords if word.arg is None]
        if keyword(node, "trust_remote_code") is None and not any("NO_CODE" in dotted(s) for s in spread):
            yield node.lineno, f"{name} without trust_remote_code=False"


def findings(path: Path) -> list[tuple[int, str]]:
    return list(unsafe(ast.parse(path.read_text(encoding="utf-8"))))


def test_no_source_file_runs_what_it_reads():
    assert len(SOURCES) > 80
    found = [(str(path.relative_to(ROOT)), line, name) for path in SOURCES for line, name in findings(path)]
    assert not [f"{file}:{line}: {name}" for file, line, name in found if (file, name) not in REVIEWED]
    stale = REVIEWED.keys() - {(file, name) for file, _, name in found}
    assert not stale, "no longer there: take them off the list"


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "pickle.load(file)",
        "from pickle import loads",
        "import joblib",
        "import dill as d",
        "from os import system",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "archive.extractall(folder)",
        "shutil.unpack_archive(a, b)",
        "Image.open(path)",
    ],
)
def test_the_search_finds(source):
    assert list(unsafe(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "model.eval()",
        "re.compile(pattern)",
        "subprocess.run(command)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "AutoModel.from_pretrained(name, **_NO_CODE)",
        "np.load(path, allow_pickle=False)",
    ],
)
def test_the_search_lets_pass(source):
    assert not list(unsafe(ast.parse(source)))
