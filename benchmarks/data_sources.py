"""Measures training data with embedded images against image files: `python benchmarks/data_sources.py`.

Writes 20,000 rows with a JPEG of about 60 kB each as parquet, as `datasets` does, and once more as files (it needs
2.5 GB), then measures in a fresh process. Speeds are ratios within one run: what is compared takes turns. Memory is
unique memory (USS) beyond the imports.
"""

import argparse
import copy
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEGABYTE = 2**20
TARGETS = {
    "first opening, indexing (s)": ("at most", 20.0),
    "a random image beyond reading its file (ms)": ("at most", 2.0),
    "unique memory after them (MB)": ("at most", 150.0),
    "images/s of 2 workers, of those from files": ("at least", 0.95),
    "seconds of three sources, of those of one": ("at most", 1.05),
}
PICTURES = 50  # that differ in more than their last bytes


def write(folder: Path, rows: int) -> None:
    """Writes `rows.parquet`, the same rows as `rows.json` with `images/`, and parquet files of a third of them each."""
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as Pillow

    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        coarse = Pillow.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((640, 480))
        noisy = np.asarray(coarse).astype(int) + generator.integers(-15, 16, (480, 640, 1))
        file = io.BytesIO()
        Pillow.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=70)
        pictures.append(file.getvalue())
    print(f"{rows:,} images of {np.mean(list(map(len, pictures))) / 1000:.0f} kB", file=sys.stderr)

    def row(number: int) -> dict:
        turns = [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": "An answer. " * 20}]
        return {"id": str(number), "conversations": turns}

    def pixels(number: int) -> bytes:
        return pictures[number % PICTURES] + number.to_bytes(8, "big")

    (folder / "images").mkdir()
    for number in range(rows):
        (folder / "images" / f"{number}.jpg").write_bytes(pixels(number))
    (folder / "rows.json").write_text(json.dumps([row(n) | {"image": f"images/{n}.jpg"} for n in range(rows)]))
    text = Value("string")
    features = {"id": text, "image": Image(), "conversations": List({"from": text, "value": text})}

    def parquet(name: str, numbers: range) -> None:
        some = ({**row(n), "image": {"bytes": pixels(n), "path": None}} for n in numbers)
        cache = str(folder / "cache")
        Dataset.from_generator(lambda: some, Features(features), cache, fingerprint=name).to_parquet(folder / name)
        shutil.rmtree(cache)

    parquet("rows.parquet", range(rows))
    for number in range(3):
        parquet(f"third-{number}.parquet", range(number, rows, 3))


class Files:
    """The images of a folder, opened by nothing but Pillow."""

    def __init__(self, folder: Path):
        self.folder = folder

    def load_image(self, row: int):
        """Decodes an image."""
        from vision_backbones.safe_images import open_image, to_rgb

        with open_image(self.folder / f"{row}.jpg") as image:
            return to_rgb(image)


class Sizes:
    """Decodes an image and gives its size, so that nothing but decoding is measured."""

    def __init__(self, source, rows: int):
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[int, int]:
        return self.source.load_image(row).size


def seconds(source, order: list[int], workers: int) -> tuple[float, float]:
    """How long it takes to decode images in an order, and how much of the processors' time that takes the workers."""
    from torch.utils.data import DataLoader

    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    start, before = time.perf_counter(), cpu()
    for _ in DataLoader(Sizes(source, len(order)), batch_size=16, sampler=order, num_workers=workers):
        pass
    return time.perf_counter() - start, cpu() - before


def measure(folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """All figures of `TARGETS`."""
    import psutil
    import torch  # noqa: F401

    from prismatic.data.mixture import open_sources
    from prismatic.data.sources import open_source

    def unique() -> float:
        return psutil.Process().memory_full_info().uss / MEGABYTE

    before, start = unique(), time.perf_counter()
    source = open_source(str(folder / "rows.parquet"))
    found = {"first opening, indexing (s)": time.perf_counter() - start}
    start = time.perf_counter()
    open_source(str(folder / "rows.parquet"))
    found["opening it again (s)"] = time.perf_counter() - start
    order = np.random.default_rng(0).permutation(rows)[: rows // 4].tolist()
    where = [source.where(row) for row in order]
    start = time.perf_counter()
    for row, place in zip(order, where, strict=True):
        source.images.open(row, 0, "image[0]", place).read()
    opened = time.perf_counter() - start
    start = time.perf_counter()
    for row in order:
        (folder / "images" / f"{row}.jpg").read_bytes()
    found["a random image beyond reading its file (ms)"] = (opened - (time.perf_counter() - start)) / len(order) * 1e3
    for row in order[: len(order) // 8]:
        source.load_image(row)
    found["unique memory after them (MB)"] = unique() - before

    three = open_sources([str(folder / f"third-{number}.parquet") for number in range(3)])
    compared = {"files": Files(folder / "images"), "one": source, "three": three}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
    for turn in range(rounds):
        order = np.random.default_rng(turn).permutation(rows)[: rows // 5].tolist()
        for name, images in list(compared.items())[:: -1 if turn % 2 else 1]:
            took[name].append(seconds(copy.deepcopy(images), order, 2))  # that knows no places yet
    files, one, mixed = (np.array(took[name]) for name in compared)
    found["images/s from files, 2 workers"] = len(order) / float(np.median(files[:, 0]))
    ratios, more = np.median(files / one, axis=0), np.median(mixed / one, axis=0)
    found["images/s of 2 workers, of those from files"], found["  by CPU time"] = ratios.tolist()
    found["seconds of three sources, of those of one"], found["   by CPU time"] = more.tolist()
    return found


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=8, help="of what takes turns")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.rows, arguments.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.rows)
        command = [sys.executable, __file__, "--measure", folder]
        command += ["--rows", str(arguments.rows), "--rounds", str(arguments.rounds)]
        environment = {**os.environ, "HF_DATASETS_CACHE": folder}
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    print(f"{'':<46}{'measured':>10}  target")
    for name, value in json.loads(done.stdout).items():
        word, target = TARGETS.get(name, ("", ""))
        print(f"{name:<46}{value:>10.3f}  {word} {target}")


if __name__ == "__main__":
    main()
