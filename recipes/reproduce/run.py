"""Runs the stages of a study, several at a time, and resumes where an earlier call was stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from recipes.reproduce import job as stages_
from recipes.reproduce.plan import PER_UNIT, WIDEST, Stage, Study

POLL = 0.5  # seconds
PINS = hasattr(os, "sched_setaffinity")  # not on macOS


def pending(stages: Iterable[Stage]) -> list[Stage]:
    """The stages that have not ended yet."""
    return [stage for stage in stages if stages_.read(stage.folder) is None]


def announce(study: Study, waiting: Sequence[Stage], perhaps: Sequence[Stage]) -> None:
    """Prints how many stages of each kind are to be run, how long they take, and those that may be added later."""
    from vision_backbones.table import table

    config, ended = study.config, len(study.stages) - len(waiting)
    kinds = {kind: [stage.seconds for stage in waiting if stage.kind == kind] for kind in PER_UNIT}
    rows = [(kind, len(seconds), sum(seconds) / 60) for kind, seconds in kinds.items() if seconds]
    if rows:
        print(table(rows, ("stage", "to run", "processor minutes")))
    minutes, more = (expected_seconds(stages, config.jobs) / 60 for stages in (waiting, perhaps))
    added = f", and {more:.0f} more if an interval is wider than {WIDEST}" if perhaps else ""
    print(f"\n{ended} of {len(study.stages)} stages have ended; about {minutes:.0f} minutes for the others{added}")
    print(f"{config.jobs} stages at a time; logs and results: {config.run_root}/\n")


def expected_seconds(stages: Iterable[Stage], jobs: int) -> float:
    """How long these stages take, `jobs` at a time, if each has a core."""
    stages = list(stages)
    return max(sum(stage.seconds for stage in stages) / jobs, max((stage.seconds for stage in stages), default=0.0))


def run_all(stages: list[Stage], jobs: int) -> None:
    """Runs what has not ended, `jobs` stages at a time, longest chains of the plan in its order.

    The bar counts expected seconds, so that its ETA holds for stages of different length. Ctrl-C stops the stages at
    work; a later call continues them.

    Raises:
        ValueError: A stage failed; says which, where its log is, and how it ended.
    """
    waiting, running, free = pending(stages), {}, shares(jobs)
    if not waiting:
        return
    done = {stage.name for stage in stages} - {stage.name for stage in waiting}
    bar = tqdm(
        total=sum(stage.seconds for stage in waiting),
        desc=f"{len(waiting)} stages",
        mininterval=1.0,
        smoothing=0,  # the mean speed so far: a stage that is slower than expected seems to stand still at its end
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} to go {postfix}",
    )
    try:
        while waiting or running:
            ready = [s for s in waiting if all(need.name in done for need in s.needs)]
            for stage in ready[: len(free)]:
                waiting.remove(stage)
                cores = free.pop()
                running[stage] = start(stage, cores), time.monotonic(), cores
            time.sleep(POLL)
            for stage, (process, _, cores) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[stage]
                free.append(cores)
                if stages_.read(stage.folder) is None:
                    raise ValueError(failure(stage, process.returncode))
                done.add(stage.name)
                bar.write(f"{stage.name}: {stages_.read(stage.folder)['seconds'] / 60:.1f} min")
            ended = sum(s.seconds for s in stages if s.name in done) - (sum(s.seconds for s in stages) - bar.total)
            under_way = sum(min(time.monotonic() - since, 0.95 * s.seconds) for s, (_, since, _) in running.items())
            bar.set_postfix_str(", ".join(stage.name for stage in running), refresh=False)
            bar.update(min(bar.total, ended + under_way) - bar.n)
    finally:
        for process, _, _ in running.values():
            stop(process)
        bar.close()


def shares(jobs: int) -> list[list[int]]:
    """The processor's cores, dealt out to so many stages; a stage has at least one."""
    cores = sorted(os.sched_getaffinity(0)) if PINS else list(range(os.cpu_count() or 1))
    return [cores[number::jobs] or [cores[number % len(cores)]] for number in range(jobs)]


def start(stage: Stage, cores: list[int]) -> subprocess.Popen:
    """Starts a stage in a process group of its own, on its cores; what it says goes to `FOLDER.log`.

    Threads that wait for one another on the same cores would spin: an alignment beside another took 7 times as long.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores)), "OMP_WAIT_POLICY": "PASSIVE"}
    stage.folder.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path(stage), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, stages_.__file__, str(stage.folder), stage.module, *stage.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    if PINS:
        os.sched_setaffinity(process.pid, cores)
    return process


def stop(process: subprocess.Popen) -> None:
    """Ends a stage: a finetune writes a checkpoint first."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def log_path(stage: Stage) -> Path:
    """What the stage said, of all attempts."""
    return stage.folder.with_name(f"{stage.folder.name}.log")


def failure(stage: Stage, code: int) -> str:
    """Says how a stage ended, with the end of its log."""
    lines = log_path(stage).read_text(errors="replace").replace("\r", "\n").strip().splitlines()
    told = "\n  ".join(lines[-5:])
    return (
        f"stage {stage.name} ended with {code}; the end of {log_path(stage)}:\n  {told}\n"
        "Finished stages are kept; fix the cause and rerun"
    )
