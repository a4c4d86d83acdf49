"""Every command in README and docs runs; every file and setting they name exists."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import ROOT, requires_samples, samples_dir

from prismatic.miniature import make_llm, make_vit
from recipes.eval_settings import EvaluateConfig
from recipes.image_settings import AlignConfig, ClassifyConfig, MimConfig
from recipes.parsing import _flags
from recipes.plan_settings import PlanConfig
from recipes.probe_settings import ProbeConfig
from recipes.reproduce_settings import ReproduceConfig
from recipes.settings import FinetuneConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    return [line for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S) for line in block.splitlines()]


def marked(page, command):
    marks = []
    if command.startswith("make ") or "smollm2" in command:
        marks.append(pytest.mark.slow)
    if command.endswith("# network"):
        marks.append(pytest.mark.network)
    if command.endswith("# GPUs"):
        marks.append(pytest.mark.gpu)
    if "$LLAVA" in command:
        marks.append(requires_samples)
    return pytest.param(command, marks=marks, id=f"{page.name}:{command[:60]}")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like the checkout but keeps what commands write."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (
        "recipes",
        "prismatic",
        "vision_backbones",
        "eval",
        "Makefile",
        "setup.py",
        "pyproject.toml",
        "README.md",
    ):
        (folder / name).symlink_to(ROOT / name)
    if (ROOT / ".venv").exists():
        (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.mark.parametrize("command", [marked(page, command) for page in PAGES for command in commands(page)])
def test_command(command, checkout):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LLAVA": str(samples_dir() / "llava" / "download" / "llava-v1.5-instruct"),
    }
    done = subprocess.run(
        command, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def test_settings_and_files_named_in_the_docs_exist():
    configs = (FinetuneConfig, PlanConfig, AlignConfig, MimConfig, ClassifyConfig, ProbeConfig, EvaluateConfig)
    configs += (ReproduceConfig, make_llm.Config, make_vit.Config)
    flags = {flag for config in configs for flag in _flags(config)}
    flags |= {"config_path", "help", "config_file", "backbone", "keep_adapters", "dtype", "quick"}
    flags |= {"num_processes", "machine_rank", "main_process_ip", "cpu", "standalone", "nproc_per_node"}  # launchers'
    for page in PAGES:
        text = page.read_text()
        for flag in re.findall(r"--([a-z_.]+)", text):
            assert flag.rstrip(".") in flags, f"{page.name}: --{flag}"
        for link in re.findall(r"\]\((\S+?)\)", text):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_readme_says_what_the_study_found():
    found = json.loads((ROOT / "docs" / "results" / "results.json").read_text())
    local = {row["head"]: row for row in found["probes"] if row["labels"] == "union"}
    said = " ".join((ROOT / "README.md").read_text().split())
    for head, name in (("linear", "linear head"), ("mlp", "MLP"), ("transformer", "transformer")):
        before, after = (local[head][which]["mean"] for which in ("original", "aligned"))
        assert f"{before:.2f} to {after:.2f} ({name})" in said
    assert f"In {('no', 'one', 'two', 'three', 'four', 'five')[found['settings']['seeds']]} seeds" in said
