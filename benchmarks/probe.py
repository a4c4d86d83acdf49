"""A whole probe against the direct formulation; then its label reduction and its metric update alone.

ViT-S/16 at 224 pixels, 256 training and 128 validation images, 183 classes, transformer head, 5 epochs of 8 steps,
float32. Direct is how the method reads: the backbone runs every epoch, labels of every patch come from a Python loop,
and every class has a confusion matrix of its own. Ours is recipes/probe.py, its intervals and pictures included. Both
read the same files in the same order and start from the same weights. Seconds of the processor are printed beside those
of the clock, which other processes may disturb.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TRAIN, VAL, CLASSES, PATCH, SIZE = 256, 128, 183, 16, 224
EPOCHS, BATCH, WARMUP, WIDTH, HEIGHT = 5, 32, 10, 640, 480
FREQUENT = 3  # classes that most regions are of: the others cannot be learned in 40 steps


def write_coco(root: Path) -> None:
    """Images of a few flat regions, whose colours tell their classes, in the layout of COCO-Stuff."""
    from PIL import Image

    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (CLASSES, 3))
    palette[:FREQUENT] = np.eye(3) * 255
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for split, count in (("train2017", TRAIN), ("val2017", VAL)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for index in range(count):
            centres = rng.uniform((0, 0), (HEIGHT, WIDTH), (9, 2))
            region = ((y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2).argmin(-1)
            common, rare = rng.integers(0, FREQUENT, 9), rng.integers(0, CLASSES, 9)
            classes = np.where(rng.random(9) < 0.9, common, rare)[region]
            picture = palette[classes] + rng.normal(0, 12, (HEIGHT, WIDTH, 3))
            name = f"{index:012d}"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{name}.jpg")
            values = ((classes - 1) % 256).astype(np.uint8)  # the id less 1, unlabeled is 255
            Image.fromarray(values).save(root / "annotations" / split / f"{name}.png", compress_level=1)


def reduce_directly(label_map):
    """Union labels `[14, 14, C]`, patch by patch."""
    import torch

    rows, columns = (side // PATCH for side in label_map.shape)
    labels = torch.zeros(rows, columns, CLASSES)
    for i in range(rows):
        for j in range(columns):
            present = torch.unique(label_map[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH])
            for c in present.tolist():
                if c != 0 or len(present) == 1:
                    labels[i, j, c] = 1
    return labels


def count_directly(confusion: list, logits, labels) -> None:
    """Adds a batch to the confusion matrix `[[tn, fp], [fn, tp]]` of every class."""
    found = (logits.sigmoid() > 0.5).flatten(0, 1).long()
    there = labels.flatten(0, 2)
    for c, matrix in enumerate(confusion):
        for truth in (0, 1):
            for said in (0, 1):
                matrix[truth, said] += ((there[:, c] == truth) & (found[:, c] == said)).sum()


def direct(root: Path, spec) -> list[dict[str, float]]:
    """The probe as the method reads; gives some scores of every epoch."""
    import torch
    import torch.nn.functional as F
    from accelerate.utils import set_seed
    from torchvision import transforms as T

    from eval.probing.backbone import ProbedBackbone
    from eval.probing.data import get_dataset, list_pairs, read_pair
    from eval.probing.heads import make_head
    from prismatic.data.samplers import shuffle_indices
    from prismatic.training.optim import cosine_rate

    dataset = get_dataset("coco")
    pairs = {split: list_pairs(dataset, root, split, partial=True) for split in ("train", "val")}
    normalise = T.Normalize(spec.mean, spec.std)

    def batch(split, rows):
        images, labels = [], []
        for row in rows:
            image, values = read_pair(dataset, *pairs[split][row])
            side, (width, height) = min(image.size), image.size
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
            images.append(normalise(T.functional.to_tensor(image.crop(box).resize((SIZE, SIZE), 2))))
            values = torch.from_numpy(np.asarray(values.crop(box).resize((SIZE, SIZE), 0)).astype(np.int64))
            labels.append(reduce_directly((values + 1) % 256))
        return torch.stack(images), torch.stack(labels)

    backbone = ProbedBackbone(spec, "all").eval().requires_grad_(False)
    set_seed(0)
    head = make_head("transformer", "union", backbone, CLASSES)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    step, epochs = 0, []
    for epoch in range(EPOCHS):
        rows = shuffle_indices(TRAIN, BATCH, 0, epoch)
        for start in range(0, TRAIN, BATCH):
            images, labels = batch("train", rows[start : start + BATCH])
            with torch.no_grad():
                tokens = backbone(images)
            logits = head(tokens)
            loss = F.binary_cross_entropy_with_logits(logits, labels.view(logits.shape))
            rate = cosine_rate(step, peak=1e-3, minimum=1e-4, total_steps=EPOCHS * TRAIN // BATCH, warmup_steps=WARMUP)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        confusion = [torch.zeros(2, 2, dtype=torch.long) for _ in range(CLASSES)]
        with torch.no_grad():
            for start in range(0, VAL, BATCH):
                images, labels = batch("val", range(start, start + BATCH))
                count_directly(confusion, head(backbone(images)), labels)
        occur = [m for m in confusion if m[1].sum()]
        recalls = [(m[1, 1] / m[1].sum()).item() for m in occur]
        precisions = [(m[1, 1] / m[:, 1].sum()).item() if m[:, 1].sum() else 0.0 for m in occur]
        right, cells = sum(m.trace().item() for m in confusion), sum(m.sum().item() for m in confusion)
        means = {"macro_recall": np.mean(recalls), "macro_precision_or_0": np.mean(precisions)}
        pooled = sum(m[1, 1].item() for m in occur) / sum(m[1].sum().item() for m in occur)
        epochs.append(means | {"micro_recall": pooled, "accuracy": right / cells})
    return epochs


def ours(root: Path, folder: Path) -> list[dict[str, float]]:
    """The recipe."""
    from recipes.config.probe import ProbeConfig
    from recipes.probe import main as probe

    config = ProbeConfig(
        backbone=["benchmark-vit-s"], data_root=str(root), partial=True, epochs=EPOCHS, batch_size=BATCH,
        warmup_steps=WARMUP, precision="fp32", workers=0, run_root=str(folder), run_id="ours",
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        return probe(config)["probes"][0]["epochs"]


def timed(work: Callable) -> tuple[object, float, float]:
    """What `work` gives, its seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - clock, time.process_time() - processor


def per_call(work: Callable, calls: int) -> float:
    """Processor seconds of a call, the least of three rounds."""
    work()
    return min(timed(lambda: [work() for _ in range(calls)])[2] / calls for _ in range(3))


def flops(spec) -> tuple[float, float, float]:
    """Of an image: backbone, head forward, head forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from eval.probing.backbone import ProbedBackbone
    from eval.probing.heads import make_head

    backbone = ProbedBackbone(spec, "all").requires_grad_(False)
    head = make_head("transformer", "union", backbone, CLASSES)
    counted = []
    for work in (
        lambda: backbone(torch.zeros(1, 3, SIZE, SIZE)),
        lambda: head(torch.zeros(1, backbone.num_tokens, backbone.embed_dim)),
        lambda: head(torch.zeros(1, backbone.num_tokens, backbone.embed_dim)).sum().backward(),
    ):
        with FlopCounterMode(display=False) as counter:
            work()
        counted.append(counter.get_total_flops())
    return tuple(counted)


def whole_run() -> None:
    """Prints the comparison of whole runs."""
    import torch
    from safetensors.torch import save_file

    from prismatic.training import loop
    from vision_backbones import BackboneSpec, register
    from vision_backbones.registry import resolve_spec
    from vision_backbones.table import table
    from vision_backbones.vit import load_vit

    peak = loop.matmul_peak(loop.launch("fp32", [], "."))
    print(f"{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        root, weights = Path(folder) / "coco", Path(folder) / "vit-s.safetensors"
        write_coco(root)
        torch.manual_seed(0)
        spec = BackboneSpec("benchmark-vit-s", arch="vit_small_patch16_224", image_size=SIZE, weights=str(weights))
        save_file(
            load_vit(BackboneSpec.from_dict(spec.to_dict() | {"weights": None}), pretrained=False).state_dict(), weights
        )
        spec = resolve_spec(register(spec))
        runs = {"direct": timed(lambda: direct(root, spec)), "ours": timed(lambda: ours(root, Path(folder)))}
        image, forward, both = flops(spec)
    head = EPOCHS * (TRAIN * both + VAL * forward)
    work = {"direct": EPOCHS * (TRAIN + VAL) * image + head, "ours": (TRAIN + VAL) * image + head}
    rows = [
        (name, clock, processor, work[name] / 1e12, work[name] / clock / peak)
        for name, (_, clock, processor) in runs.items()
    ]
    ratios = [a / b for a, b in zip(rows[0][1:4], rows[1][1:4], strict=True)]
    print(table([*rows, ("ratio", *ratios, "")], ("whole run", "seconds", "processor s", "TFLOP", "of peak")))
    differ = max(
        abs(one[name] - other[name])
        for one, other in zip(runs["direct"][0], runs["ours"][0], strict=True)
        for name in one
    )
    last = ", ".join(f"{name} {value:.4f}" for name, value in runs["direct"][0][-1].items())
    print(f"products alone allow {work['direct'] / work['ours']:.2f}x; the rest are labels and metrics")
    print(f"after the last epoch: {last}; the greatest difference of any epoch is {differ:.1e} (target 1e-6)\n")


def alone() -> None:
    """Prints label reduction and metric update by themselves, on one thread."""
    import torch

    from eval.probing.labels import reduce_labels
    from eval.probing.metrics import count_hits
    from prismatic.training.loop import keep_freed_memory
    from vision_backbones.table import table

    torch.set_num_threads(1)
    keep_freed_memory()  # as every recipe does
    rng = np.random.default_rng(0)
    label_map = np.kron(rng.integers(0, CLASSES, (28, 28)), np.ones((8, 8), int)).astype(np.uint8)
    noise = rng.integers(0, CLASSES, (SIZE, SIZE)).astype(np.uint8)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, 196, CLASSES, generator=generator) - 2
    labels = (torch.rand(BATCH, 14, 14, CLASSES, generator=generator) < 0.01).to(torch.uint8)
    confusion, floats = [torch.zeros(2, 2) for _ in range(CLASSES)], labels.float()
    tensors = {name: torch.from_numpy(m.astype(np.int64)) for name, m in (("flat", label_map), ("noise", noise))}

    for own, theirs in ((label_map, tensors["flat"]), (noise, tensors["noise"])):
        assert np.array_equal(reduce_labels(own, PATCH, CLASSES, "union"), reduce_directly(theirs).numpy())
    count_directly(confusion, logits, floats)
    right, found, there = count_hits(logits, labels, "union").sum(0)
    summed = torch.stack(confusion).long()
    assert torch.equal(summed[:, 1, 1], right) and torch.equal(summed[:, :, 1].sum(1), found)
    assert torch.equal(summed[:, 1].sum(1), there)

    source, target = np.ones(2**24), np.ones(2**24)
    bandwidth = 2 * source.nbytes / per_call(lambda: np.copyto(target, source), 5)

    def labels_row(name: str, own, theirs) -> tuple:
        slow = per_call(lambda: reduce_directly(theirs), 5)
        return name, slow, per_call(lambda: reduce_labels(own, PATCH, CLASSES, "union"), 300), own.nbytes / bandwidth

    seconds = [
        labels_row("labels of a map with four regions a patch", label_map, tensors["flat"]),
        labels_row("labels of a map of noise (the worst case)", noise, tensors["noise"]),
        (
            "metric update, 32 images",
            per_call(lambda: count_directly(confusion, logits, floats), 3),
            per_call(lambda: count_hits(logits, labels, "union"), 50),
            (logits.nbytes + labels.nbytes) / bandwidth,
        ),
    ]
    rows = [(name, slow * 1e3, fast * 1e3, slow / fast, limit * 1e3) for name, slow, fast, limit in seconds]
    print(table(rows, ("alone, one thread", "direct ms", "ours ms", "ratio (target 50)", "reading the input once, ms")))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    alone()
    print()
    whole_run()
