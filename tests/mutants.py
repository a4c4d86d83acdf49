"""`make mutants`: plants small faults (a comparison flipped, a constant off by one, ...) and asks the nearest tests.

Faults are cosmic-ray's, drawn evenly over the places where it can plant one. Every fault gets a process of its own,
forked from one that has the libraries imported, in a copy of the checkout. What is printed is what no test noticed:
look whether it is equivalent, else write the test. `--count 20 --only prismatic/text/parsing.py` tries fewer.
"""

import argparse
import difflib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from forked import PRELOADED, ROOT

PROBE = "eval/probing"
NEAREST = {
    "eval/scoring/scorers.py": "tests/eval/test_scorers.py tests/eval/test_tasks.py",
    "prismatic/text/parsing.py": "tests/eval/test_parsing.py tests/eval/test_scorers.py tests/eval/test_tasks.py",
    "eval/engine.py": "tests/eval/test_engine.py tests/eval/test_runner.py",
    "eval/probing/labels.py": f"tests/{PROBE}/test_metrics.py tests/{PROBE}/test_probe_golden.py tests/{PROBE}",
    "eval/probing/metrics.py": f"tests/{PROBE}/test_metrics.py tests/{PROBE}/test_probe_golden.py",
    "vision_backbones/maskembed/mask_samplers.py": "tests/vision_backbones/maskembed",
    "vision_backbones/maskembed/masked_forward.py": "tests/vision_backbones/maskembed",
    "vision_backbones/maskembed/loss.py": "tests/vision_backbones/maskembed tests/recipes/test_align_data.py",
    "vision_backbones/maskembed/student.py": "tests/vision_backbones/maskembed tests/recipes/test_align.py",
    "vision_backbones/maskembed/teacher.py": "tests/vision_backbones/maskembed tests/recipes/test_align.py",
    "prismatic/data/batching.py": "tests/data/test_batching.py tests/recipes/test_finetune.py",
    "prismatic/data/samplers.py": "tests/data/test_batching.py tests/recipes/test_finetune.py",
    "prismatic/models/stages.py": "tests/training/test_optim.py tests/training/test_loop.py",
    "prismatic/text/conversations.py": "tests/data/test_conversations.py tests/models/test_prompts.py",
    "prismatic/text/rendering.py": "tests/models/test_templates.py tests/models/test_prompts.py",
    "prismatic/text/speech.py": "tests/models/test_speech.py",
    "prismatic/models/self_check.py": "tests/models/test_families.py tests/models/test_strange_llms.py",
    "eval/sharing.py": "tests/models/test_families.py",
    "prismatic/text/words.py": "tests/data/test_conversations.py",
    "prismatic/training/optim.py": "tests/training/test_optim.py tests/training/test_loop.py",
    "prismatic/models/projectors.py": "tests/models/test_projectors.py tests/models/test_model.py",
    "prismatic/models/attention.py": (
        "tests/models/test_shared_prefix.py tests/training/test_loop.py tests/eval/test_engine.py"
    ),
    "prismatic/checkpoints/epoch.py": "tests/training/test_checkpoint.py tests/recipes/test_finetune.py",
    "prismatic/checkpoints/run_folder.py": "tests/training/test_checkpoint.py tests/recipes/test_started_again.py",
    "prismatic/checkpoints/lock.py": "tests/training/test_checkpoint.py",
    "vision_backbones/files.py": "tests/training/test_checkpoint.py",
    "prismatic/checkpoints/step.py": "tests/training/test_resume.py",
    "prismatic/checkpoints/writer.py": "tests/training/test_resume.py",
}
COPIED = ("prismatic", "vision_backbones", "eval", "recipes", "tests", "docs")
LIBRARIES = [name for name in PRELOADED if not name.startswith(("prismatic", "eval", "recipes"))]
LEFT_OUT = ("BitOr", "Variable", "ExceptionReplacer", "NoOp")  # unions of types; faults that nobody makes
SECONDS = 300


def possible(path: str) -> list[tuple[str, str]]:
    """Every fault that can be planted in a file, as its operator and the text with the fault; one of each place."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    code = (ROOT / path).read_text()
    nodes = list(ast_nodes(get_ast(code)))
    places = defaultdict(list)
    for name in operator_names():
        if any(part in name for part in LEFT_OUT):
            continue
        operator = get_operator(name)()
        spots = [span for node in nodes for span in operator.mutation_positions(node)]
        for occurrence, span in enumerate(spots):
            places[span].append((name, occurrence))
    rng, faults = random.Random(path), []
    for span in sorted(places):
        name, occurrence = rng.choice(places[span])
        text = mutate_code(code, get_operator(name)(), occurrence)
        if text and text != code:
            faults.append((name, text))
    return faults


def tests_of(path: str, folder: Path) -> int:
    """Forks a process that runs the nearest tests of a file in a copy of the checkout; its exit status says how."""
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        output = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        os.chdir(folder)
        sys.path[:] = [
            str(folder),
            str(folder / "tests"),
            *(p for p in sys.path if not p.startswith(str(ROOT / "tests"))),
        ]
        sys.modules.pop("forked")
        import pytest

        status = int(pytest.main([*NEAREST[path].split(), "-x", "-q", "-p", "no:cacheprovider"]))
    finally:
        os._exit(status)


def main() -> None:
    """Plants the faults and prints which nobody noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="faults to plant (200)")
    parser.add_argument("--seed", type=int, default=0, help="which of them (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (one a core)")
    parser.add_argument("--only", help="plant them in this file alone, e.g. prismatic/text/parsing.py")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ.setdefault("GOLDEN_DIR", str(ROOT.parent / "shared" / "golden"))
    os.environ.setdefault("DATA_SAMPLES", str(ROOT.parent / "shared" / "data-samples"))
    paths = [options.only] if options.only else list(NEAREST)
    faults = [(path, name, text) for path in paths for name, text in possible(path)]
    random.Random(options.seed).shuffle(faults)
    waiting = [(path, None, None) for path in paths] + faults[: options.count]  # first: are the tests green at all?
    for name in LIBRARIES:
        importlib.import_module(name)

    root = Path(tempfile.mkdtemp(prefix="mutants-"))
    free, running, unnoticed, done = [], {}, [], defaultdict(int)
    for job in range(options.jobs):
        for name in COPIED:
            shutil.copytree(ROOT / name, root / str(job) / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("README.md", "pyproject.toml", "setup.py", "Makefile"):
            shutil.copy(ROOT / name, root / str(job) / name)
        free.append(root / str(job))
    while waiting or running:
        while waiting and free:
            path, name, text = waiting.pop(0)
            folder = free.pop()
            (folder / path).write_text(text or (ROOT / path).read_text())
            shutil.rmtree((folder / path).parent / "__pycache__", ignore_errors=True)
            running[tests_of(path, folder)] = folder, path, name, text, time.monotonic()
        child, status = os.waitpid(-1, os.WNOHANG)
        for pid, (*_, started) in running.items():
            if time.monotonic() - started > SECONDS:
                os.killpg(pid, signal.SIGKILL)
        if not child:
            time.sleep(0.05)
            continue
        folder, path, name, text, started = running.pop(child)
        (folder / path).write_text((ROOT / path).read_text())
        free.append(folder)
        if name is None:
            assert status == 0, f"the tests of {path} fail without a fault:\n{(folder / 'log').read_text()[-3000:]}"
            continue
        done[path] += 1
        diff = list(difflib.unified_diff((ROOT / path).read_text().splitlines(), text.splitlines(), lineterm="", n=0))
        change = " ".join(line for line in diff[2:] if not line.startswith("@@"))
        where = diff[2].split()[1].lstrip("-").split(",")[0]
        told = "NOT NOTICED" if status == 0 else "noticed"
        print(
            f"{sum(done.values()):4} {told} in {time.monotonic() - started:.0f} s: {path}:{where} {change}", flush=True
        )
        if status == 0:
            unnoticed.append(f"{path}:{where} {change}")
    shutil.rmtree(root)
    planted = sum(done.values())
    print(f"\n{planted - len(unnoticed)} of {planted} faults were noticed", *unnoticed, sep="\n")


if __name__ == "__main__":
    main()
