"""Several processes train one model: the same losses and weights as one process."""

import subprocess
import sys
from pathlib import Path

import jsonlines
import pytest
import torch
from golden_cases import ROOT
from safetensors.torch import load_file

ARGUMENTS = (
    "--data.annotations miniature:48 --data.workers 0 --data.held_out_limit 1 --data.sampler split-modality "
    "--global_batch_size 16 --per_device_batch_size 4 --max_steps 5"
).split()


def run(processes: int, folder: Path) -> tuple[list[float], dict]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "recipes/finetune.py", *ARGUMENTS, "--run_root", str(folder), "--run_id", str(processes)],
        capture_output=True, text=True, cwd=ROOT, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with jsonlines.open(folder / str(processes) / "metrics.jsonl") as reader:
        losses = [row["loss"] for row in reader]
    return losses, load_file(folder / str(processes) / "checkpoints" / "epoch-02" / "model.safetensors")


def test_two_processes_are_one(tmp_path):
    (one, weights), (two, same) = run(1, tmp_path), run(2, tmp_path)
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-4)
    assert weights.keys() == same.keys()
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value, atol=1e-4, rtol=0)
