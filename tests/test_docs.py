"""Every command in README and docs runs; every file and setting they name exists."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from golden_cases import ROOT, requires_samples, samples_dir

from prismatic.miniature import make_llm, make_vit
from recipes.config.app import AppConfig
from recipes.config.chat import ChatConfig
from recipes.config.evaluate import EvaluateConfig
from recipes.config.finetune import FinetuneConfig
from recipes.config.images import AlignConfig, ClassifyConfig, MimConfig
from recipes.config.parsing import _flags
from recipes.config.plan import PlanConfig
from recipes.config.probe import ProbeConfig
from recipes.config.reproduce import ReproduceConfig
from recipes.config.serve import ServeConfig

TRAINING = ("align", "finetune", "probe", "scale")  # pages whose commands are slow tests: the README trains, too
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@functools.cache
def commands(page):
    """The commands of a page, each in one page alone; `make test` is what runs this."""
    earlier = [line for other in PAGES[: PAGES.index(page)] for line in commands(other)]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S) for line in block.splitlines()]
    return [line for line in lines if line != "make test" and line not in earlier]


QUICK_MAKE = {  # as `make finetune` does, in less time
    "finetune": "--max_steps 2 --eval_root miniature:4 --data.held_out_limit 8 --data.annotations miniature:200",
    "align": "--max_steps 2 --data.train miniature:256 --data.validation miniature:8:4",
    "probe": "--max_steps 2 --backbone miniature,miniature-aligned --dataset miniature --data_root miniature:64:16",
    "evaluate": "--data_root miniature:8",
    "chat": "--help",
    "reproduce": "--help",  # the study itself is a command of docs/reproduce.md
}


def kind(command):
    """What starts a command: `accelerate`, `python -m` of a package, `python` of a script, ..."""
    words = command.split()
    return " ".join([*words[:2], words[2].split(".")[0]] if words[1:2] == ["-m"] else words[:1])


@functools.cache
def started(of):
    """The command of a kind that is started as a user starts it: one that prints its help, if there is one."""
    alike = [c for page in PAGES for c in commands(page) if kind(c) == of]
    return next((c for c in alike if c.endswith("--help")), alike[0])


def marked(page, command):
    marks, name = [], f"{page.name}:{command[:60]}"
    # The study is run in small, its stages forked, by tests/miniature/test_study.py, and a 7B is planned by test_plan.
    if command.startswith("make ") or "smollm2" in command or re.search("reproduce --quick|plan --model", command):
        marks.append(pytest.mark.slow)
    elif page.stem in TRAINING:
        marks.append(pytest.mark.slow)
    if command.endswith("# network"):
        marks.append(pytest.mark.network)
    if command.endswith("# GPUs"):  # several, and mostly the hub
        marks.append(pytest.mark.network)
    if "$LLAVA" in command:
        marks.append(requires_samples)
    real = not marks and kind(command) != "accelerate" and command == started(kind(command))
    return pytest.param(command, real or "/cpu-2.yaml" in command, marks=marks, id=name)


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


BATCH = {"global_batch_size": "8", "per_device_batch_size": "8"}
SHORT = {  # what commands take where they say nothing else: nobody looks at what these models learn
    "finetune": {"eval_tasks": "[]", "data.held_out_limit": "8", "max_steps": "2"} | BATCH,
    "align": BATCH, "mim": BATCH, "classify": BATCH, "probe": {"batch_size": "8"},
}  # fmt: skip
SHORTER = (
    ("max_steps 20", "max_steps 2"),
    ("limit 40", "limit 10"),
    ("validation miniature:64", "validation miniature:8"),
)


def shortened(command):
    """The command with fewer and smaller steps, and with small evaluations of what they leave."""
    command, _, needs = command.partition("  #")
    if command.startswith("make ") and (settings := QUICK_MAKE.get(command.split()[1])):
        return f'{" ".join(command.split()[:2])} ARGS="{settings}"'
    recipe = re.search(r"recipes/(\w+)\.py", command)
    if needs or not recipe or command.endswith("--help"):
        return command
    for long, short in SHORTER:
        command = re.sub(rf"{long}\b", short, command)
    settings = SHORT.get(recipe[1], {}) | ({"eval_root": "miniature:4"} if "--run_id with-mine" in command else {})
    unsaid = {name for name in settings if f"--{name} " not in command}
    unsaid -= {"eval_tasks"} if "eval_root" in settings else set()
    unsaid -= BATCH.keys() if "--processes" in command else set()
    return " ".join([command, *(f"--{name} {settings[name]}" for name in settings if name in unsaid)])


def as_forked(command):
    """Arguments of Python and number of processes of a command; None where it is no command of ours in Python."""
    argv = shlex.split(command)
    if argv[0] == "python":
        return argv[1:], 1
    if argv[0] == "prismatic":
        return ["-m", *argv], 1
    if argv[:3] == ["accelerate", "launch", "--config_file"] and argv[3].endswith(("/one-process.yaml", "/cpu-2.yaml")):
        return argv[4:], 2 if argv[3].endswith("/cpu-2.yaml") else 1
    return None


@pytest.mark.parametrize(("command", "real"), [marked(page, c) for page in PAGES for c in commands(page)])
def test_command(command, real, checkout):
    """One command of each kind is started as a user starts it, the others are forked."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LLAVA": str(samples_dir() / "llava" / "download" / "llava-v1.5-instruct"),
    }
    command = shortened(command).replace("$LLAVA", environment["LLAVA"])
    if not real and (found := as_forked(command)):
        done = forked.run(found[0], processes=found[1], cwd=checkout, env=environment, timeout=900)
    else:
        options = {"capture_output": True, "text": True, "timeout": 900}
        done = subprocess.run(command, shell=True, cwd=checkout, env=environment, **options)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "had defaults used instead" not in done.stdout + done.stderr, "accelerate's configuration lacks something"


def test_settings_and_files_named_in_the_docs_exist():
    configs = (FinetuneConfig, PlanConfig, AlignConfig, MimConfig, ClassifyConfig, ProbeConfig, EvaluateConfig)
    configs += (ReproduceConfig, ServeConfig, ChatConfig, AppConfig, make_llm.Config, make_vit.Config)
    flags = {flag for config in configs for flag in _flags(config)}
    flags |= {"config_path", "help", "config_file", "backbone", "keep_adapters", "dtype", "quick"}
    flags |= {"dry_run", "eval", "private"}  # of push
    flags |= {"format", "mmproj", "clip", "image"}  # of export, and of the converters of llama.cpp
    flags |= {"device", "toy", "minutes"}  # of benchmarks/gpu.py
    flags |= {"image_root", "n", "out"}  # of data
    flags |= {"logdir"}  # of tensorboard
    flags |= {"full", "timm"}  # of backbones list
    flags |= {"parts"}  # of recipes.reproduce.bundled
    flags |= {"model_args", "output_path", "include_path", "log_samples", "gen_kwargs"}  # of lmms-eval
    flags |= {"num_processes", "machine_rank", "main_process_ip", "cpu", "standalone", "nproc_per_node"}  # launchers'
    for page in PAGES:
        text = page.read_text()
        for flag in re.findall(r"--([a-z_.]+)", text):
            assert flag.rstrip(".") in flags, f"{page.name}: --{flag}"
        for link in re.findall(r"\]\((\S+?)\)", text):
            assert link.startswith("http") or (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"


def test_the_readme_says_what_the_study_found():
    found = json.loads((ROOT / "docs" / "results" / "results.json").read_text())
    local = {row["head"]: row for row in found["probes"] if row["labels"] == "union"}
    said = " ".join((ROOT / "README.md").read_text().split())
    for head, name in (("linear", "linear head"), ("mlp", "MLP"), ("transformer", "transformer")):
        before, after = (local[head][which]["mean"] for which in ("original", "aligned"))
        assert f"{before:.2f} to {after:.2f} ({name})" in said
    number = ("no", "one", "two", "three", "four", "five", "six", "seven")[len(found["seeds"])]
    assert f"Over {number} seeds" in said
    shown = re.findall(r"([+-]\d\.\d\d) \((clear|not clear)\)", said)
    decided = [row["holm"] is not None and row["holm"] < 0.05 for row in found["comparisons"]]
    differences = [f"{row['mean']:+.2f}" for row in found["comparisons"]]
    assert shown == [(d, "clear" if yes else "not clear") for d, yes in zip(differences, decided, strict=True)]
