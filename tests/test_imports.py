"""Every public name, and every module of models, can be what a fresh process imports first."""

import subprocess
import sys
from pathlib import Path

import pytest

import prismatic
from prismatic import models

FIRST = [f"from prismatic import {name}" for name in prismatic.__all__]
FIRST += ["from prismatic.models.load import build"]  # where scripts look for it
FIRST += [f"import prismatic.models.{path.stem}" for path in sorted(Path(models.__path__[0]).glob("[a-z]*.py"))]
CHILD = """
import os, sys, traceback
for line in sys.argv[1:]:
    child = os.fork()  # of a process that has imported nothing of ours, and torch once for all
    if not child:
        try:
            exec(line)
        except BaseException:
            print(line, traceback.format_exc(), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


FEW = ["import prismatic.models.modeling"]  # scripts begin otherwise, as other tests do


@pytest.mark.parametrize("lines", [FEW, pytest.param(FIRST, marks=pytest.mark.slow)], ids=["few", "all"])
def test_what_is_imported_first(lines):
    done = subprocess.run([sys.executable, "-c", "import torch" + CHILD, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
