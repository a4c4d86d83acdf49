"""Measures how long commands take to answer, and recipes to their first step: `python benchmarks/startup.py`."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vision_backbones.table import table

COMMANDS = {
    "python recipes/finetune.py --help": (["recipes/finetune.py", "--help"], 2.0),
    "python -m eval list": (["-m", "eval", "list"], 0.5),
    "import vision_backbones and list": (["-c", "import vision_backbones; vision_backbones.list_backbones()"], 0.3),
    "import torch": (["-c", "import torch"], None),
    "import prismatic": (["-c", "import prismatic"], None),
    "import prismatic; AutoProcessor": (["-c", "import prismatic; from transformers import AutoProcessor"], None),
}
SMALL = "--data.workers 0 --max_steps 1 --run_id first --run_root".split()
FIRST_STEP = {  # what is run, and the file whose first line of loss or answer is waited for
    "recipes/finetune.py": (["--data.annotations", "miniature:600", "--data.held_out_limit", "8", *SMALL], "loss"),
    "recipes/align.py": (["--data.train", "miniature:256", "--data.validation", "miniature:64:4", *SMALL], "loss"),
    "recipes/evaluate.py": (["--tasks", "vsr", "--data_root", "miniature:20", "--out"], "output"),
}


def main() -> None:
    """Prints the best of five runs of each command, and of three to each first step, less the start of Python."""
    bare = min(_seconds(["-c", "pass"]) for _ in range(5))
    rows = [
        (name, min(_seconds(arguments) for _ in range(5)) - bare, "" if limit is None else f"{limit} s")
        for name, (arguments, limit) in COMMANDS.items()
    ]
    print(table(rows, ("command", "seconds", "target")))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            (script, min(_until_first(script, *FIRST_STEP[script], Path(folder) / f"{script}-{i}") for i in range(3)))
            for script in FIRST_STEP
        ]
    print(table(rows, ("until its first step or answer", "seconds")))


def _seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def _until_first(script: str, arguments: list[str], word: str, folder: Path) -> float:
    """Seconds until a line with the key `word` is in one of the files that a run writes as it goes."""
    started = time.perf_counter()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, script, *arguments, str(folder)], **streams)
    while not any(f'"{word}"' in path.read_text() for path in folder.rglob("*.jsonl")):
        if process.poll() not in (None, 0):
            raise SystemExit(f"error: {script} ended with {process.returncode}")
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    process.kill()
    process.wait()
    return seconds


if __name__ == "__main__":
    main()
