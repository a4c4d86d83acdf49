"""Several processes train one model: the same losses and weights as one process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import jsonlines
import pytest
import torch
from golden_cases import ROOT
from safetensors.torch import load_file

import prismatic

ARGUMENTS = (
    "--data.annotations miniature:24 --data.workers 0 --data.held_out_limit 1 --data.sampler split-modality "
    "--eval_tasks [] "
    "--global_batch_size 8 --per_device_batch_size 2 --max_steps 5"
).split()


def recipe(folder: Path, name: str) -> list[str]:
    return ["recipes/finetune.py", *ARGUMENTS, "--run_root", str(folder), "--run_id", name]


def run(processes: int, folder: Path) -> tuple[list[float], dict]:
    done = forked.run(recipe(folder, str(processes)), processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(folder / str(processes))


def read(run_dir: Path) -> tuple[list[float], dict]:
    with jsonlines.open(run_dir / "metrics.jsonl") as reader:
        losses = [row["loss"] for row in reader if "loss" in row]
    return losses, load_file(run_dir / "checkpoints" / "epoch-02" / "model.safetensors")


@pytest.mark.parametrize("launcher", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_are_one(launcher, tmp_path):
    """Also when they are asked to stop (as a scheduler does before it takes the machine), and go on later."""
    one, weights = run(1, tmp_path)
    stopped = tmp_path / "stopped"
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([*torchrun, *recipe(tmp_path, "stopped")], cwd=ROOT, **streams)
    else:
        process = forked.Process(recipe(tmp_path, "stopped"), processes=2, stderr=subprocess.STDOUT)
    while not (stopped / "metrics.jsonl").exists() or not (stopped / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    step = json.loads((stopped / "resumable.json").read_text())["step"]
    assert step < 5 and f"stopped after step {step} as asked" in out, out[-3000:]
    assert prismatic.load(stopped)[0].num_parameters() > 1e6, "an unfinished run can be loaded"
    done = forked.run(recipe(tmp_path, "stopped"), processes=2)
    assert done.returncode == 0 and f"after step {step}\n" in done.stdout, done.stderr[-3000:]
    two, same = read(stopped)
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-5) and not (stopped / "resumable.json").exists()
    assert weights.keys() == same.keys()
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value, atol=1e-4, rtol=0)
