"""What runs leave, and runs that are killed at random moments and started again."""

import hashlib
import json
import random
import signal
import subprocess
import time

import forked
import jsonlines
from safetensors.torch import load_file

KILLS = 6
MAY_DIFFER = ("seconds", "per_second", "mfu", "memory", "flops", "answered_before")  # in names of what is measured
ROWS = ("metrics.jsonl", "samples.jsonl", "results.json", "outcome.json")


def untimed(content):
    if isinstance(content, dict):
        return {k: untimed(v) for k, v in content.items() if not any(word in k for word in MAY_DIFFER)}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def left(folder):
    """Digests of every file of weights that is no step's, and the rows of what was measured and answered."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors" and "step-" not in name and "previous" not in name:
            tensors = sorted(load_file(path).items())
            content = b"".join(key.encode() + value.numpy().tobytes() for key, value in tensors)
            found[name] = hashlib.sha256(content).hexdigest()
        elif path.name in ROWS and path.suffix == ".json":
            content = json.loads(path.read_text())
            found[name] = untimed(content.get("tasks", content.get("probes", content)))
        elif path.name in ROWS:
            with jsonlines.open(path) as reader:
                found[name] = [row for row in map(untimed, reader) if row.keys() - {"step"}]
    return found


def differences(one, two, where=""):
    """Where two contents differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        pairs = [(key, one.get(key), two.get(key)) for key in one.keys() | two.keys()]
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = list(zip(range(len(one)), one, two, strict=True))
    else:
        return [] if one == two else [f"{where}: {str(one)[:80]} and {str(two)[:80]}"]
    return [found for key, *pair in pairs for found in differences(*pair, f"{where}.{key}")]


def outlives_kills(command, folder, seed):
    """Kills runs until `KILLS` were: each leaves in the end what an undisturbed one leaves.

    `command(name)` is the command line, without Python, of a run into `folder / name`.
    """
    forked.run(["-c", "pass"])  # the server is there
    began = time.perf_counter()
    whole = forked.run(command("whole"))
    seconds = time.perf_counter() - began
    assert whole.returncode == 0, whole.stderr[-3000:]
    expected, rng, kills, number = left(folder / "whole"), random.Random(seed), 0, 0
    assert len(expected) > 1 and all(expected.values())
    while kills < KILLS:
        number += 1
        for _ in range(100):
            life = forked.Process(command(number), stderr=subprocess.STDOUT)
            ends = time.monotonic() + rng.uniform(0, seconds)
            while life.poll() is None and time.monotonic() < ends:
                time.sleep(0.01)
            life.send_signal(signal.SIGKILL)
            out = life.communicate()[0]
            assert life.returncode in (0, -signal.SIGKILL), out[-3000:]
            if life.returncode == 0:
                break
            kills += 1
        assert life.returncode == 0
        assert not differences(left(folder / str(number)), expected)
    print(f"{seed}: {kills} kills of {number} runs of {seconds:.1f} s")
