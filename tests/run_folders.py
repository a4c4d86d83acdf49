"""Folders of runs as the page of runs meets them: recorded ones, and some made up."""

import json
import shutil

from golden_cases import ROOT

from recipes.web.run_data import HEADER, Runs, row

OLD = ROOT / "tests" / "fixtures" / "b6e569a"
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)
LOSS = '{"step": 1, "epoch": 0, "loss": 0.5, "learning_rate": 0.1}\n'
PNG = b"\x89PNG\r\n\x1a\n"


def recorded(root):
    """Puts the recorded runs, without their weights, into a folder, and returns it."""
    for name in ("finetune", "align", "mim", "classify", "probe", "evaluate"):
        shutil.copytree(OLD / name, root / name, ignore=shutil.ignore_patterns("*.safetensors"))
    return root


def rows(root):
    """The table of a folder: a dict of each row, by the name of its run."""
    return {run.name: dict(zip(HEADER, row(run), strict=True)) for run in Runs(root).all()}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def made(folder, **files):
    """A folder with files, `a_json="..."` for `a.json`."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return folder
