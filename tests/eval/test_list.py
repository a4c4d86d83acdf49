"""`python -m eval list`, names, and tasks of one's own."""

import subprocess
import sys

import pytest
from golden_cases import ROOT

from eval.tasks import get_task, list_tasks

PLUGIN = """
from eval.scoring.scorers import exact_match
from eval.task import Example, Generate, Task, register

def read(root, split):
    rows = (line.split(",") for line in (root / "colours.csv").read_text().splitlines())
    return [Example(id, f"{id}.png", "What colour is it?", colour) for id, colour in rows]

register(Task("colours", 1, read, lambda e: e.question, lambda e: Generate(8), exact_match(), {"all": {"": 2}}))
"""


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "my_tasks.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "eval", "list", "--plugins", "my_tasks"]
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "colours" in listed.stdout and "refcoco" in listed.stdout
    missing = subprocess.run([*command[:-1], "mytask"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith("error: no plugin module 'mytask'")

    script = """
from pathlib import Path
import my_tasks
from eval.data.selection import load_examples
from eval.tasks import get_task
task = get_task("colours")
records = [vars(e) | {"output": "red"} for e in load_examples(task, Path("."))]
print(task.scorer.summarise([r | task.scorer.judge(r) for r in records]))
"""
    (tmp_path / "colours.csv").write_text("007,red\n008,blue\n")
    for id in ("007", "008"):
        (tmp_path / f"{id}.png").touch()
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "{'accuracy': 0.5}", ran.stderr


def test_list_is_fast_and_light():
    """It imports nothing heavy; benchmarks/startup.py says how long it takes."""
    command = [
        sys.executable,
        "-c",
        "import atexit, os, runpy, sys; sys.argv[1:] = ['list']\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'matplotlib', 'numpy', 'pyarrow'}\n"
        "atexit.register(lambda: heavy & set(sys.modules) and os._exit(3))\n"
        "runpy.run_module('eval', run_name='__main__')",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    for task in list_tasks():
        assert f"\n{task.name} " in listed.stdout
    assert "26,488" in listed.stdout and "IoU >= 0.5" in listed.stdout and "51.5%" in listed.stdout


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(ValueError, match="did you mean refcoco"):
        get_task("refcco")
    with pytest.raises(ValueError, match="choose from val, testA, testB, test"):
        get_task("refcoco:train")
    assert get_task("refcoco:testA").split == "testA"
