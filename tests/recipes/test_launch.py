"""Launchers: every configuration is accepted, forms the group it promises, and stops when it is asked to."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from golden_cases import ROOT

from prismatic.training.tracking import read_metrics
from recipes.config.finetune import FinetuneConfig
from recipes.config.parsing import _flags

CONFIGS = sorted((ROOT / "recipes" / "configs" / "accelerate").glob("*.yaml"))
SBATCH = ROOT / "recipes" / "slurm" / "finetune.sbatch"
BIN = Path(sys.executable).parent
RUN = [
    "--data.annotations", "miniature:48", "--data.workers", "0", "--data.held_out_limit", "1", "--eval_tasks", "[]",
    "--global_batch_size", "8", "--per_device_batch_size", "4",
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PATH": f"{BIN}:{os.environ['PATH']}"}


def accelerate(config: str, folder: Path, name: str, *more: str, launcher: tuple[str, ...] = ()) -> list[str]:
    file = ROOT / "recipes" / "configs" / "accelerate" / config
    start = [str(BIN / "accelerate"), "launch", "--config_file", str(file), *launcher]
    return [*start, "recipes/finetune.py", *RUN, "--run_root", str(folder), "--run_id", name, *more]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def wait_for_steps(run_dir: Path, process: subprocess.Popen, steps: int = 1) -> None:
    file = run_dir / "metrics.jsonl"
    while not file.exists() or sum("loss" in row for row in read_metrics(file)) < steps:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.02)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_configuration_without_a_word(config, caplog):
    load_config_from_file(str(config))  # unknown keys raise
    args = launch_command_parser().parse_args(["--config_file", str(config), "recipes/finetune.py"])
    args, defaults, _ = _validate_launch_command(args)
    assert "had defaults used instead" not in caplog.text, caplog.text
    settings = yaml.safe_load(config.read_text())
    assert args.num_processes == settings["num_processes"] and not args.use_cpu
    assert args.multi_gpu == (settings["distributed_type"] == "MULTI_GPU")
    assert config.read_text().startswith("# ")


@pytest.mark.slow
def test_a_launcher_starts_the_recipe():
    config = ROOT / "recipes" / "configs" / "accelerate" / "one-process.yaml"
    run = start([str(BIN / "accelerate"), "launch", "--config_file", str(config), "recipes/finetune.py", "--help"])
    out = run.communicate(timeout=200)[0]
    assert run.returncode == 0 and "--vision_backbone" in out and "had defaults used instead" not in out, out[-3000:]


def test_an_unknown_key_would_be_noticed(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIGS[0].read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(file))


@pytest.mark.slow
def test_two_cpu_processes_are_a_group_that_finishes(tmp_path):
    run = start(accelerate("cpu-2.yaml", tmp_path, "two", "--processes", "2", "--max_steps", "2"))
    out = run.communicate(timeout=200)[0]
    assert run.returncode == 0 and "had defaults used instead" not in out, out[-3000:]
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_processes_that_form_no_group_do_not_train(tmp_path):
    launcher = [str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2", "recipes/finetune.py"]
    run = start([*launcher, *RUN, "--max_steps", "2", "--run_root", str(tmp_path), "--run_id", "apart"])
    out = run.communicate(timeout=200)[0]
    assert run.returncode != 0
    assert re.search(r"^error: the launcher was asked for several processes, but this one is alone: ", out, re.M), out
    assert not (tmp_path / "apart").exists()


@pytest.mark.slow
def test_a_launcher_of_one_process_hands_sigterm_on(tmp_path):
    run_dir = tmp_path / "one"
    run = start(accelerate("one-gpu.yaml", tmp_path, "one", "--max_steps", "40", "--epochs", "9"))
    wait_for_steps(run_dir, run)
    run.send_signal(signal.SIGTERM)
    out = run.communicate(timeout=60)[0]
    step = json.loads((run_dir / "resumable.json").read_text())["step"]
    assert f"stopped after step {step} as requested" in out


@pytest.mark.slow
def test_two_launchers_are_two_nodes(tmp_path):
    port, folder = free_port(), tmp_path
    settings = ["--processes", "2", "--sharding", "hybrid", "--max_steps", "2"]
    launcher = ["--num_processes", "2", "--main_process_port", port, "--machine_rank"]
    nodes = [
        start(accelerate("two-nodes.yaml", folder, "nodes", *settings, launcher=(*launcher, str(rank))))
        for rank in range(2)
    ]
    for node in nodes:
        out = node.communicate(timeout=200)[0]
        assert node.returncode == 0, out[-3000:]
    assert json.loads((folder / "nodes" / "summary.json").read_text())["steps"] == 2


def test_the_slurm_script_is_a_script_with_settings_that_exist():
    assert subprocess.run(["bash", "-n", str(SBATCH)]).returncode == 0
    text = SBATCH.read_text()
    passed = re.search(r"^srun .*?[^\\]\n", text, re.M | re.S).group().partition("recipes/finetune.py")[2]
    flags = set(re.findall(r"--([\w.]+)", passed))
    assert {"run_root", "run_id", "processes", "sharding"} <= flags
    assert flags <= set(_flags(FinetuneConfig))
    assert {"--signal=TERM@120", "--requeue"} <= set(re.findall(r"^#SBATCH (\S+)", text, re.M))


@pytest.mark.slow
def test_the_slurm_script_queues_itself_again_and_goes_on(tmp_path):
    """Two nodes on this machine: `srun` starts the command twice, and what the script asks of SLURM is written down."""
    run_dir, asked, folder = tmp_path / "job", tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    tools = {
        "scontrol": f'if [ "$1" = show ]; then echo localhost; else echo "$@" >> {asked}; fi',
        "srun": "\n".join([
            "shift", 'trap "kill -TERM \\$a \\$b" TERM', '"$@" & a=$!', '"$@" & b=$!',
            "wait $a $b", "wait $a", "status=$?", "wait $b", "exit $status",
        ]),
    }  # fmt: skip
    for name, body in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{ENVIRONMENT['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "finetune",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "RUN": "job",
        "RUN_ROOT": str(tmp_path), "PORT": free_port(),
    }  # fmt: skip
    command = ["bash", str(SBATCH), *RUN, "--epochs", "9"]
    run = start([*command, "--max_steps", "12"], **environment)
    wait_for_steps(run_dir, run)
    srun = next(child for child in psutil.Process(run.pid).children() if "srun" in " ".join(child.cmdline()))
    srun.send_signal(signal.SIGTERM)
    out = run.communicate(timeout=90)[0]
    assert asked.read_text() == "requeue 7\n", out[-3000:]
    step = json.loads((run_dir / "resumable.json").read_text())["step"]
    again = start([*command, "--max_steps", "12"], **environment)
    out = again.communicate(timeout=200)[0]
    assert again.returncode == 0 and f"after step {step}\n" in out, out[-3000:]
    assert asked.read_text() == "requeue 7\n"
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 12
