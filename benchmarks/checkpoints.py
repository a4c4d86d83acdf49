"""Measures step checkpoints, several processes on one machine, and plans: `python benchmarks/checkpoints.py`.

Saves: 108M trained parameters (frozen ViT-tiny, Llama 768 wide x 8 layers with 32,064 words), float32, AdamW, in one
process with two threads and in two sharded ones with one thread each. The first save, which reserves the memory that
later ones use again, is left out. Resuming reads from the disk: the page cache is emptied of the files before.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prismatic.models import stages

ROOT = Path(__file__).resolve().parent.parent
EVERY, SAVES, ROWS, TEXT = 5, 5, 2, 100
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
RECIPE = (
    "recipes/finetune.py --data.annotations miniature:640 --data.workers 0 --data.held_out_limit 1 --eval_tasks [] "
    "--per_device_batch_size 16 --max_steps 20 --save_every_steps null --run_id run --run_root"
).split()


def prepare(accelerator):
    """Model and optimizer, sharded where there are several processes."""
    import torch
    from transformers import LlamaConfig

    from prismatic import PrismaticConfig, PrismaticForConditionalGeneration
    from prismatic.training import optim, sharding
    from vision_backbones import BackboneSpec

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=32_064, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12
    )
    spec = BackboneSpec("vit-tiny", arch="vit_tiny_patch16_224", image_size=224)
    config = PrismaticConfig(text_config=text, vision_config=spec.to_dict(), image_token_id=32_063)
    model = PrismaticForConditionalGeneration(config)
    stages.set_trainable(model, "finetune")
    sharding.shard(model, "full", accelerator)
    return model, torch.optim.AdamW(optim.parameter_groups(model.named_parameters(), 0.1), lr=1e-4, fused=True)


def save(folder: Path) -> dict:
    """Trains while checkpoints are written."""
    from finetune_step import make_examples

    from prismatic.checkpoints import writer as saving
    from prismatic.data.batching import collate_padded
    from prismatic.training import loop, losses

    accelerator = loop.launch("fp32", [], str(folder))
    model, optimizer = prepare(accelerator)
    (folder / "checkpoints").mkdir(exist_ok=True)
    steps, saved = [], []
    checkpoints = saving.AsyncCheckpointer(folder, accelerator, model, optimizer, every=EVERY, log=saved.append)
    rows = ROWS // accelerator.num_processes
    batch = collate_padded(make_examples([TEXT] * rows, 0.4, accelerator.process_index), 0)
    total = (SAVES + 1) * EVERY - 1  # the last save, too, has steps beside it
    loop.fit(
        accelerator, model, optimizer, losses.TEXT, epochs=[(0, [batch] * total)], total_steps=total,
        accumulation=1, rate_at=lambda step: 1e-4, max_grad_norm=1.0, log=steps.append,
        end_of_epoch=lambda epoch, step: None, after_step=checkpoints.after_step,
        before_update=checkpoints.before_update,
    )  # fmt: skip
    checkpoints.save(total + 1)
    checkpoints.close()
    *saved, alone = saved[1:]
    calm = statistics.median(row["seconds"] for row in steps[1:] if row["step"] % EVERY == 0)
    longer = [row["seconds"] - calm for row in steps[EVERY:] if row["step"] % EVERY]
    newest = max((folder / "checkpoints").glob("step-*"))
    return {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "gigabytes": sum(path.stat().st_size for path in newest.iterdir()) / 1e9,
        "alone": alone["checkpoint_seconds"],
        "write": statistics.median(row["checkpoint_seconds"] for row in saved),
        "waited": statistics.median(row["checkpoint_wait_seconds"] for row in saved),
        "most": max(row["checkpoint_wait_seconds"] for row in saved),
        "longer": sum(longer) / len(saved),
        "step": calm,
    }


def resume(folder: Path) -> dict:
    """Continues from what `save` left, in a process that has only built the model."""
    from prismatic.checkpoints import step as state
    from prismatic.checkpoints import writer as saving
    from prismatic.training import loop

    accelerator = loop.launch("fp32", [], str(folder))
    model, optimizer = prepare(accelerator)
    seconds = {}

    def timed(name: str):
        function = getattr(state, name)

        def call(*arguments):
            started = time.perf_counter()
            result = function(*arguments)
            accelerator.wait_for_everyone()
            seconds[name] = time.perf_counter() - started
            return result

        setattr(state, name, call)

    for file in folder.rglob("*.safetensors") if accelerator.is_main_process else ():
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    accelerator.wait_for_everyone()
    timed("newest_whole")
    timed("load_tensors")
    started = time.perf_counter()
    saving.resume("auto", folder, accelerator, model, optimizer)
    accelerator.wait_for_everyone()
    whole = time.perf_counter() - started
    return {"resume": whole, "verify": seconds["newest_whole"], "load": seconds["load_tensors"]}


def launch(processes: int, *arguments: str, cores: int | None = None) -> str:
    """What a script prints, in so many processes on so many cores."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    some = sorted(os.sched_getaffinity(0))[:cores]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        preexec_fn=lambda: os.sched_setaffinity(0, some),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def print_saves() -> None:
    """Prints what saves and resuming cost."""
    from vision_backbones.table import table

    rows, shares, resumed = [], [], []
    for processes in (1, 2):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder:
            did, again = (
                json.loads(launch(processes, __file__, what, folder).splitlines()[-1]) for what in ("save", "resume")
            )
        ratio = did["waited"] / did["write"]
        rows.append((processes, did["gigabytes"], did["alone"], did["write"], did["waited"], did["most"], ratio))
        for every in (50, 500):
            time_between = every * did["step"]
            waited, all_in_all = did["waited"] / time_between, (did["waited"] + did["longer"]) / time_between
            shares.append((processes, every, did["step"], did["longer"], f"{waited:.4%}", f"{all_in_all:.2%}"))
        resumed.append((processes, again["resume"], again["verify"], again["load"]))
    print(f"{did['trained']:,} trained parameters\n")
    header = (
        "processes",
        "GB on disk",
        "s to write alone",
        "beside training",
        "s waited",
        "at most",
        "waited / written",
    )
    print(table(rows, header), "\ntarget: waited / written at most 0.1\n")
    header = (
        "processes",
        "--save_every_steps",
        "s a step",
        "s longer steps a save",
        "share waited",
        "and longer steps",
    )
    print(table(shares, header), "\n")
    print(table(resumed, ("processes", "s to resume", "verifying", "loading")), "\n")


def print_scaling(rounds: int = 2) -> None:
    """Prints tokens a second of the miniature finetune; the best of some rounds, in turn."""
    from prismatic.training.tracking import read_metrics
    from vision_backbones.table import table

    settings = [(1, 2, "none"), (1, 1, "none"), (2, 2, "none"), (2, 2, "grad-op"), (2, 2, "full")]
    rates: dict[tuple, list[float]] = {setting: [] for setting in settings}
    for setting in settings * rounds:
        processes, cores, mode = setting
        with tempfile.TemporaryDirectory() as folder:
            launch(processes, *RECIPE, folder, "--sharding", mode, cores=cores)
            steps = [row for row in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "loss" in row][3:]
        tokens = sum(row["tokens_per_second"] * row["seconds"] for row in steps)
        rates[setting].append(tokens / sum(row["seconds"] for row in steps))
    best = {setting: max(found) for setting, found in rates.items()}
    two_threads, one_thread = best[settings[0]], best[settings[1]]
    rows = [
        (processes, cores, mode if processes > 1 else "", round(rate), rate / two_threads, rate / one_thread / cores)
        for (processes, cores, mode), rate in best.items()
    ]
    header = ("processes", "cores", "sharding", "tokens/s", "of 1 process on them", "of 1 core, times cores")
    print(table(rows, header), "\n")


def print_memory() -> None:
    """Prints the peak of a step of two processes beside what was planned, by the code of the tests."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "training")]
    from plan_cases import CASES
    from test_plan import measured, planned

    from vision_backbones.table import table

    rows = []
    for name in ("full", "full-checkpointing", "grad-op", "ddp"):
        plan, peak = planned(CASES[name]).peak, measured(name)
        rows.append((name, round(plan / 1e6), round(peak / 1e6), plan / peak))
    print(table(rows, ("2 processes", "planned MB", "measured MB", "ratio")), "\ntarget: within 0.15")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(f"load of the machine before: {os.getloadavg()[0]:.1f} (0 is idle)\n")
        print_saves()
        print_scaling()
        print_memory()
    else:
        found = {"save": save, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(found))
