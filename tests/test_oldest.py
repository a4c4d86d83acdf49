"""The oldest packages that setup.py allows are enough."""

import os
import re
import subprocess
import sys

import pytest
from golden_cases import ROOT

SETUP = (ROOT / "setup.py").read_text()
OLDEST = re.findall(r'^ +"([a-z0-9-]+)>=([0-9.]+)",$', SETUP.split("install_requires")[1].split("]")[0], re.M)
AS_THEY_ARE = ("torch", "torchvision")  # no older builds without CUDA are to be had
TESTS = [
    *("models/test_model.py", "models/test_import_golden.py", "models/test_lora.py", "models/test_speech.py"),
    *("training/test_loop.py", "training/test_optim.py", "training/test_resume.py", "eval/test_engine.py"),
    *("eval/test_scorers.py", "eval/test_parsing.py", "vision_backbones/test_vit.py", "recipes/test_grid.py"),
]


@pytest.mark.slow
def test_the_oldest_packages_that_are_allowed_are_enough(tmp_path):
    assert len(OLDEST) > 15
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    import torch
    import torchvision

    now = {"torch": torch.__version__.split("+")[0], "torchvision": torchvision.__version__.split("+")[0]}
    packages = [f"{name}=={now[name] if name in AS_THEY_ARE else lowest}" for name, lowest in OLDEST]
    install = [python, "-m", "pip", "install", "--quiet", *packages, "pytest", "pytest-xdist", "hypothesis", "psutil"]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "FORKED"))}
    done = subprocess.run(
        [python, "-m", "pytest", "-W", "ignore", *(f"tests/{name}" for name in TESTS)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]
