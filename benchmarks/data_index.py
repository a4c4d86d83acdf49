"""Measures opening and reading a data set of LLaVA-1.5's size: `python benchmarks/data_index.py`.

Writes 665,000 rows of about 1.5 kB into a temporary folder (it needs 2.5 GB), then measures in fresh processes the
first opening, which indexes, and a later one. Seconds and memory are counted beyond the imports of torch, datasets and
our package; unique memory (USS) because touched pages of the index are shared with the page cache.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEGABYTE = 2**20
RANDOM_ROWS = 20_000
TARGETS = {
    "reopening (s)": 2.0,
    "unique memory, main process (MB)": 150.0,
    "unique memory, forked worker (MB)": 20.0,
}


def write_rows(path: Path, rows: int) -> None:
    """Writes seeded rows shaped like llava_v1_5_mix665k.json: 6 % text-only, some integer ids, 2 to 16 turns."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("etaoinshrdlu"), size)) for size in generator.integers(2, 10, 5000)]
    sentences = [" ".join(generator.choice(words, size)) for size in generator.integers(3, 50, 20_000)]
    pairs, text_only = generator.integers(1, 9, rows), generator.random(rows) < 0.06
    with path.open("w") as file:
        for number in range(rows):
            turns = []
            for text in generator.integers(0, len(sentences), 2 * pairs[number]).tolist():
                turns.append({"from": "gpt" if len(turns) % 2 else "human", "value": sentences[text]})
            row = {"id": number if number % 9 == 0 else f"{number:012d}", "conversations": turns}
            if text_only[number]:
                row["model"] = ""
            else:
                row["image"] = f"coco/train2017/{number:012d}.jpg"
                turns[0]["value"] = "<image>\n" + turns[0]["value"]
            file.write(("[" if number == 0 else ", ") + json.dumps(row))
        file.write("]")


def measure(annotations: Path, root: Path) -> dict[str, float]:
    """Opens the data set in this process and reads from it, here and in a forked worker."""
    import psutil

    from prismatic.data.conversation_dataset import ConversationDataset
    from prismatic.data.samplers import micro_batches, split_modality_indices

    def unique() -> float:
        return psutil.Process().memory_full_info().uss / MEGABYTE

    def read_random_rows(seed: int) -> float:
        order = np.random.default_rng(seed).integers(0, len(dataset), RANDOM_ROWS).tolist()
        start = time.perf_counter()
        for index in order:
            dataset[index]
        return (time.perf_counter() - start) / RANDOM_ROWS

    def work(pipe) -> None:
        read_random_rows(1)
        pipe.send(unique())

    before, peak_before = unique(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    dataset = ConversationDataset(annotations, root)
    images, words = dataset.image_counts, dataset.word_counts
    found = {"seconds": time.perf_counter() - start}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - peak_before
    start = time.perf_counter()
    plan = micro_batches(split_modality_indices(images, words, 128, 8, seed=0, epoch=0), 0, 8, 128, 16)
    found["plan"] = time.perf_counter() - start
    found["row"] = read_random_rows(0) * 1e6
    found["main"] = unique() - before
    receiver, sender = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(sender,))
    worker.start()
    found["worker"] = receiver.recv()
    worker.join()
    found["micro-batches"] = len(plan)
    return found


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=665_000)
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder) / "rows.json"
        write_rows(annotations, arguments.rows)
        size = annotations.stat().st_size / MEGABYTE
        command = [sys.executable, __file__, "--measure", str(annotations), folder]
        environment = {**os.environ, "HF_DATASETS_CACHE": folder}
        first, later = (
            json.loads(subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout)
            for _ in range(2)
        )
    rows = {
        "first opening, indexing (s)": first["seconds"],
        "first opening, peak memory (MB)": first["peak"],
        "reopening (s)": later["seconds"],
        "unique memory, main process (MB)": later["main"],
        "unique memory, forked worker (MB)": later["worker"],
        "a random row (microseconds)": later["row"],
        "batches of one epoch (s)": later["plan"],
    }
    print(f"{arguments.rows:,} rows, {size:,.0f} MB of json")
    print(f"{'':<36}{'measured':>10}{'target':>10}{'ratio':>8}")
    for name, value in rows.items():
        target = TARGETS.get(name)
        print(f"{name:<36}{value:>10.2f}" + (f"{target:>10.0f}{value / target:>8.2f}" if target else ""))
    print(f"indexing: {size / first['seconds']:.0f} MB/s, peak memory {first['peak'] / size:.2f} of the file's size")
    print(f"reopening: {first['seconds'] / later['seconds']:.0f} times faster than indexing")


if __name__ == "__main__":
    main()
