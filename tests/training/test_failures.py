"""Two processes are one, also when one raises, is killed or hangs, or both are asked to stop, and then go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import psutil
import pytest
import torch
from golden_cases import ROOT
from safetensors.torch import load_file

import prismatic
from prismatic.data import samplers
from prismatic.training.tracking import read_metrics

ROWS, SIZE, MICRO, SEED, STEPS = 32, 8, 4, 7, 7  # four steps an epoch, one micro-batch a step on each of two processes
BAD_STEP = 3  # its image of process 1 is damaged


class Run:
    """A run of the real recipe on two processes, under torchrun or forked; or on one."""

    def __init__(self, data: Path, run_dir: Path, launcher: str = "torchrun", processes: int = 2):
        self.data, self.run_dir, self.launcher, self.processes = data, run_dir, launcher, processes
        settings = {
            "processes": processes, "data.annotations": data / "train.json", "data.sampler": "shuffle",
            "data.workers": 1, "data.held_out_limit": 1, "eval_tasks": [], "global_batch_size": SIZE,
            "per_device_batch_size": MICRO, "seed": SEED, "epochs": 2, "max_steps": STEPS, "save_every_steps": 1,
            "run_root": run_dir.parent, "run_id": run_dir.name,
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        self.recipe = ["recipes/finetune.py", *flags]

    def start(self, *more: str) -> subprocess.Popen | forked.Process:
        if self.launcher == "forked":
            return forked.Process([*self.recipe, *more], processes=2, stderr=subprocess.STDOUT)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return subprocess.Popen(
            [*torchrun, *self.recipe, *more], cwd=ROOT, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self) -> str:
        """Runs to the end, which takes no torchrun; gives what was printed."""
        done = forked.run(self.recipe, processes=self.processes)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def wait_for_step(self, step: int, launcher: subprocess.Popen) -> None:
        file = self.run_dir / "metrics.jsonl"
        while not file.exists() or max((m["step"] for m in read_metrics(file) if "loss" in m), default=0) < step:
            assert launcher.poll() is None, launcher.communicate()[0][-3000:]
            time.sleep(0.01)

    def results(self) -> tuple[list[float], dict]:
        losses = [m["loss"] for m in read_metrics(self.run_dir / "metrics.jsonl") if "loss" in m]
        return losses, load_file(self.run_dir / "checkpoints" / "epoch-02" / "model.safetensors")


def processes_of(launcher) -> tuple[list[psutil.Process], dict[int, psutil.Process]]:
    """All that the launcher started, and of these the processes that train, by rank."""
    if isinstance(launcher, forked.Process):
        ranks = dict(enumerate(map(psutil.Process, launcher.pids)))
        return list(ranks.values()), ranks
    every = psutil.Process(launcher.pid).children(recursive=True)
    ranks = [p for p in every if p.ppid() == launcher.pid and "finetune.py" in " ".join(p.cmdline())]
    return every, {int(p.environ()["RANK"]): p for p in ranks}


def ends(launcher, every: list[psutil.Process], within: float) -> tuple[float, str]:
    """Seconds until nothing is left of a run, and what it printed."""
    started = time.perf_counter()
    out = launcher.communicate(timeout=within)[0]
    left = psutil.wait_procs(every, timeout=max(0.1, within - (time.perf_counter() - started)))[1]
    assert not left, [p.cmdline() for p in left]
    assert launcher.returncode not in (0, None), out[-3000:]
    return time.perf_counter() - started, out


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from prismatic.miniature.llava_writer import write_llava

    folder = write_llava(tmp_path_factory.mktemp("data") / "scenes", ROWS)
    rows = json.loads((folder / "train.json").read_text())
    for number, row in enumerate(rows):  # a picture of its own, which can be damaged for one step alone
        if "image" in row:
            own = f"images/row_{number}.png"
            shutil.copy(folder / row["image"], folder / own)
            row["image"] = own
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory) -> tuple[list[float], dict]:
    """What the run ends with that nothing happens to."""
    run = Run(data, tmp_path_factory.mktemp("runs") / "whole")
    run.finish()
    return run.results()


def image_of(data: Path, rank: int, step: int) -> Path:
    plan = samplers.micro_batches(samplers.shuffle_indices(ROWS, SIZE, SEED, 0), rank, 2, SIZE, MICRO)
    return data / json.loads((data / "train.json").read_text())[plan[step - 1][0]]["image"]


def raises(run: Run) -> str:
    image = image_of(run.data, 1, BAD_STEP)
    content = image.read_bytes()
    image.write_bytes(b"no image")
    try:
        launcher = run.start()
        run.wait_for_step(BAD_STEP - 1, launcher)
        seconds, out = ends(launcher, processes_of(launcher)[0], 60)
    finally:
        image.write_bytes(content)
    assert "error: " in out and image.name in out, out[-5000:]
    return f"one raises: {seconds:.1f} s"


def is_asked_to_stop(run: Run) -> str:
    """As a scheduler does before it takes the machine."""
    launcher = run.start()
    run.wait_for_step(BAD_STEP, launcher)
    launcher.send_signal(signal.SIGTERM)
    out = launcher.communicate(timeout=60)[0]
    step = json.loads((run.run_dir / "resumable.json").read_text())["step"]
    assert BAD_STEP <= step < STEPS and f"stopped after step {step} as requested" in out, out[-3000:]
    assert prismatic.load(run.run_dir)[0].num_parameters() > 1e6, "an unfinished run can be loaded"
    return f"asked to stop: after step {step}"


def is_killed(run: Run, rank: int, step: int) -> str:
    launcher = run.start()
    run.wait_for_step(step, launcher)
    every, ranks = processes_of(launcher)
    ranks[rank].send_signal(signal.SIGKILL)
    seconds, out = ends(launcher, every, 60)
    assert "SIGKILL" in out or "-9" in out, out[-3000:]
    return f"process {rank} killed: {seconds:.1f} s"


def killed_later(run: Run) -> str:
    return is_killed(run, 1, 5)


def hangs(run: Run, rank: int, step: int) -> str:
    launcher = run.start("--timeout_minutes", "0.2")
    run.wait_for_step(step, launcher)
    every, ranks = processes_of(launcher)
    ranks[rank].send_signal(signal.SIGSTOP)
    other = ranks[1 - rank]
    started = time.perf_counter()
    psutil.wait_procs([other], timeout=60)
    until_other = time.perf_counter() - started
    rest, out = ends(launcher, every, 60)
    assert 11 < until_other < 25, out[-3000:]
    return f"process {rank} hangs: {until_other:.1f} s until the other ends, {until_other + rest:.1f} s until all have"


def goes_on(run: Run, expected: tuple[list[float], dict]) -> None:
    assert "continues from" in run.finish()
    losses, weights = run.results()
    assert losses == expected[0] and len(losses) == STEPS
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())


@pytest.mark.slow
def test_two_processes_are_one(data, tmp_path):
    one, two = Run(data, tmp_path / "one", processes=1), Run(data, tmp_path / "two", "forked")
    one.finish()
    for fault in (raises, is_asked_to_stop):
        print(fault(two))
    assert "continues from" in two.finish() and not (two.run_dir / "resumable.json").exists()
    (losses, weights), (expected, expected_weights) = two.results(), one.results()
    assert len(losses) == STEPS and losses == pytest.approx(expected, rel=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_run_survives_one_fault_after_another(data, expected, tmp_path):
    run = Run(data, tmp_path / "faults")
    for fault in (raises, killed_later):
        print(fault(run))
    goes_on(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "rank"), [(is_killed, 0), (hangs, 0), (hangs, 1)])
def test_it_does_not_matter_which_process(fault, rank, data, expected, tmp_path):
    run = Run(data, tmp_path / "faults")
    print(fault(run, rank, 3))
    goes_on(run, expected)
