"""The notebook docs/tour.ipynb, executed from top to bottom."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from golden_cases import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
LIBRARIES = ROOT / ".venv" / "tour"
there = find_spec("nbclient") or (LIBRARIES / "nbclient").is_dir()

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=".")
nbformat.write(notebook, "executed.ipynb")
"""


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    for cell in cells:
        for name in "".join(cell["source"]).split("](")[1:]:
            assert (NOTEBOOK.parent / name.partition(")")[0]).is_file()


@pytest.mark.slow
@pytest.mark.skipif(not there, reason="nbclient is not installed")
def test_the_tour_runs(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{LIBRARIES}",
        "IPYTHONDIR": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    command, started = [sys.executable, "-c", EXECUTE, str(NOTEBOOK)], time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert time.monotonic() - started < 120
    outputs = [
        output
        for cell in json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
        for output in cell.get("outputs", ())
    ]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert "How many objects are there?" in said and "validation loss last" in said and "tallyqa" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
