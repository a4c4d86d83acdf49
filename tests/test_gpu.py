"""`benchmarks/gpu.py`: at toy sizes on the CPU, so that it cannot rot; as it is where there is a GPU."""

import json
import os
import sys

import forked
import pytest
import torch
from golden_cases import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gpu  # noqa: E402
from on_gpu.models import Skipped  # noqa: E402

SCRIPT = "benchmarks/gpu.py"


@pytest.mark.slow
def test_every_part_runs_at_toy_sizes(tmp_path):
    alone = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = forked.run([SCRIPT, "--device", "cpu", "--toy", "--out", str(tmp_path)], env=alone)
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()
    found = json.loads((tmp_path / "gpu.json").read_text())
    states = {part["title"]: part["state"] for part in found["parts"]}
    skipped = {part["part"] for part in found["parts"] if part["state"] == "skipped"}
    assert skipped == {"two_devices", "out_of_memory", "host_waits"}
    assert set(states.values()) == {"ok", "skipped"} and len(states) == 16
    values = [value for part in found["parts"] for _, value, _ in part["values"]]
    assert len(values) >= 14 and all(value > 0 for value in values)
    table = (tmp_path / "gpu.md").read_text()
    assert all(part["title"] in table for part in found["parts"] if not part["measures"])


def test_a_part_that_fails_is_a_line_and_the_rest_goes_on(tmp_path, capsys):
    def holds(machine):
        """What holds"""
        return "found"

    def breaks(machine):
        """What breaks"""
        raise RuntimeError("reason\nand more")

    def lacks(machine):
        """What cannot be tried"""
        raise Skipped("needs two GPUs")

    def measures(machine):
        """How fast"""
        return [("speed", 12.0, "images/s")]

    parts = [(holds, False), (breaks, False), (lacks, False), (measures, True)]
    if torch.accelerator.is_available():
        pytest.skip("--device cpu is for machines without a GPU")
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)], parts) == 1
    shown = capsys.readouterr().out
    for line in (
        "found",
        "WRONG",
        "RuntimeError: reason\n",
        "needs two GPUs",
        "speed: 12 images/s",
        "1 of 4 parts are wrong",
    ):
        assert line in shown
    assert "and more" in (tmp_path / "log.txt").read_text() and "and more" not in shown
    assert gpu.main(["--device", "cpu", "--minutes", "0", "--out", str(tmp_path)], parts) == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"][3]["state"] == "left out"


def test_a_machine_without_a_gpu_is_told(capsys):
    if torch.accelerator.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu --toy tries the parts without one" in capsys.readouterr().err


@pytest.mark.gpu
def test_everything_is_right_on_this_gpu(tmp_path):
    assert gpu.main(["--minutes", "0", "--out", str(tmp_path)]) == 0, (tmp_path / "log.txt").read_text()
