"""Probing several backbones with several kinds of labels, one probe after the other."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from eval.probing.backbone import ProbedBackbone
from eval.probing.data import PatchExamples, SegmentationSet, get_dataset
from eval.probing.features import Probe, Split, check_room, features_size
from eval.probing.heads import check_head, make_head, tokens_for
from eval.probing.labels import check_labels
from eval.probing.saved import OUTCOME, probe_folder, save_probe
from eval.probing.train import train
from prismatic.data import batching
from prismatic.data.samplers import fill_batches
from prismatic.training import console, loop
from vision_backbones import BackboneSpec, check_spec, import_plugins
from vision_backbones.files import read_json, write_json
from vision_backbones.weights import find_weights


def check(config) -> tuple[SegmentationSet, dict[str, BackboneSpec]]:
    """The data set of a `ProbeConfig`, and its backbones by name, once all is checked that needs no weights.

    Raises:
        ValueError: the data set, a backbone, a head or a kind of labels is unknown or does not fit, or weights are not
            there.
    """
    import_plugins(config.plugins)
    dataset = get_dataset(config.dataset)
    for labels in config.labels:
        check_labels(labels), check_head(config.head, labels, config.head_width, config.head_depth)
    specs = {name: check_spec(name, image_size=config.image_size) for name in config.backbone}
    for spec in specs.values():
        for part in (spec.parts or (spec,)) if config.pretrained else ():
            find_weights(part)
    with torch.device("meta"):
        for spec in specs.values():
            backbone = _load(config, spec, config.labels[0], pretrained=False)
            _head(config, config.labels[0], backbone, dataset)
    return dataset, specs


def run_probes(
    config,
    accelerator: Accelerator,
    dataset: SegmentationSet,
    specs: dict[str, BackboneSpec],
    pairs: dict[str, Sequence],
    run_dir: Path,
) -> list[dict]:
    """Probes every backbone with every kind of labels; probes that are finished already are read.

    Args:
        config: a `ProbeConfig`.
        accelerator: of one process.
        dataset: what is probed on.
        specs: from `check`.
        pairs: images with their annotations, by split.
        run_dir: gets a folder for each probe.

    Returns:
        The outcome of every probe.
    """
    peak, results, backbone = loop.matmul_peak(accelerator), [], None
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    for name, spec in specs.items():
        for labels in config.labels:
            keep = tokens_for(config.head, labels)
            folder = probe_folder(run_dir, name, labels)
            if (folder / OUTCOME).is_file():  # of the run that this one continues
                results.append(read_json(folder / OUTCOME, "delete it to probe again", "backbone", "labels", "best"))
                continue
            if config.full_finetune or backbone is None or (backbone.spec, backbone.keep) != (spec, keep):
                if not config.pretrained:
                    set_seed(config.seed)  # the same random weights for all labels, and when the run is resumed
                backbone = _load(config, spec, labels, pretrained=config.pretrained).to(accelerator.device)
                splits = {
                    split: Split(PatchExamples(dataset, p, spec, backbone.patch, config.labels), config.workers)
                    for split, p in pairs.items()
                }
            set_seed(config.seed)
            head = _head(config, labels, backbone, dataset).to(accelerator.device)
            probe = Probe(backbone, head, finetune=config.full_finetune, dtype=dtype)
            random = "" if config.pretrained else " with random weights"
            title = f"{name}{random}: {labels} labels of {dataset.name}, {config.head} head on {keep} tokens"
            console.print_parts(accelerator, title, console.parameters(backbone=backbone, head=head))
            plans = {"val": list(batching.batched(range(len(pairs["val"])), config.batch_size))}
            rows = fill_batches(range(len(pairs["train"])), config.batch_size).tolist()
            plans["train"] = list(batching.batched(rows, config.batch_size))
            if config.cache != "off" and splits["train"].features is None:
                _keep_features(config, accelerator, probe, splits, plans, run_dir)
            folder.mkdir(parents=True, exist_ok=True)
            outcome = train(config, accelerator, probe, splits, plans["val"], labels, folder, peak)
            results.append({"backbone": name, "labels": labels, "head": config.head, "tokens": keep} | outcome)
            save_probe(folder, config, probe, dataset, name, labels, epoch=outcome["last"]["epoch"])
            write_json(folder / OUTCOME, results[-1])
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return results


def _load(config, spec: BackboneSpec, labels: str, *, pretrained: bool) -> ProbedBackbone:
    keep = tokens_for(config.head, labels)
    return ProbedBackbone(spec, keep, skip_blocks=config.skip_blocks, pretrained=pretrained)


def _head(config, labels: str, backbone: ProbedBackbone, dataset: SegmentationSet) -> nn.Module:
    sizes = {"width": config.head_width, "depth": config.head_depth}
    return make_head(config.head, labels, backbone, len(dataset.classes), **sizes)


def _keep_features(config, accelerator: Accelerator, probe: Probe, splits: dict, plans: dict, run_dir: Path) -> None:
    size = features_size(list(splits.values()), probe)
    accelerator.print(f"features: {size / 1e9:.2f} GB, computed once, kept in {config.cache}")
    check_room(size, config.cache, run_dir)
    for split, part in splits.items():
        path = run_dir / f"{split}.features" if config.cache == "disk" else None
        part.keep(plans[split], accelerator, probe, path)
