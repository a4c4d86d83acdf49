"""Patch probing: how well a small head reads from a frozen vision backbone what is in each patch of an image.

`accelerate launch recipes/probe.py` alone compares two tiny backbones on the miniature world; `--help` lists every
setting.
"""

import shutil

from prismatic.checkpoints.lock import releases
from recipes import command
from recipes.config.probe import ProbeConfig, parse_probe

RESULTS, OUTCOME = "results.json", "outcome.json"  # of all probes, of one
DATA = "data.json"  # fingerprint of what is probed on
MAY_CHANGE = ("workers", "run_root", "cache", "data_root")


@releases
def main(config: ProbeConfig) -> dict:
    """Probes every backbone with every kind of labels, and gives the content of `results.json`."""
    import torch
    from accelerate.utils import set_seed

    from eval.probing import data
    from eval.probing.backbone import ProbedBackbone
    from eval.probing.evaluate import results_table
    from eval.probing.features import Probe, Split, check_room, features_size
    from eval.probing.heads import check_head, make_head, tokens_for
    from eval.probing.labels import check_labels
    from eval.probing.plots import draw_comparison
    from eval.probing.train import train
    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.data.batching import fill_batches
    from prismatic.data.fingerprints import check_same, of_pairs
    from prismatic.training import console as report
    from prismatic.training import loop
    from vision_backbones import check_spec, import_plugins
    from vision_backbones.files import read_json, write_json
    from vision_backbones.weights import find_weights

    accelerator = loop.launch(config.precision, [], config.run_root)
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes were started: a probe is one, on one device")

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    dataset = data.get_dataset(config.dataset)
    for labels in config.labels:
        check_labels(labels), check_head(config.head, labels)
    specs = {name: check_spec(name) for name in config.backbone}
    for spec in specs.values():
        for part in spec.parts or (spec,):
            find_weights(part)

    def load(spec, labels: str, pretrained: bool) -> ProbedBackbone:
        keep = tokens_for(config.head, labels)
        return ProbedBackbone(spec, keep, skip_blocks=config.skip_blocks, pretrained=pretrained)

    with torch.device("meta"):
        for spec in specs.values():
            make_head(config.head, config.labels[0], load(spec, config.labels[0], False), len(dataset.classes))
    root = data.find_root(dataset, config.data_root)
    pairs = {split: data.list_pairs(dataset, root, split, config.partial) for split in dataset.folders}
    accelerator.print(f"{dataset.name}: {', '.join(f'{len(p):,} {s}' for s, p in pairs.items())} images, all in pairs")
    run_dir = open_run(config, accelerator, f"{'+'.join(config.backbone)}+probe", MAY_CHANGE, finished=RESULTS)
    if content := finished_run(run_dir, accelerator, RESULTS):
        return content
    fingerprint = of_pairs(pairs)
    if (run_dir / DATA).is_file():
        check_same(read_json(run_dir / DATA, "choose another --run_id"), fingerprint, run_dir)
    write_json(run_dir / DATA, fingerprint)
    peak = loop.matmul_peak(accelerator)

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    results, backbone = [], None
    for name, spec in specs.items():
        for labels in config.labels:
            keep = tokens_for(config.head, labels)
            folder = run_dir / name.replace("/", "_").replace(":", "_") / labels
            if (folder / OUTCOME).is_file():  # of the run that this one continues
                results.append(read_json(folder / OUTCOME, "delete it to probe anew", "backbone", "labels", "best"))
                continue
            if config.full_finetune or backbone is None or (backbone.spec, backbone.keep) != (spec, keep):
                backbone = load(spec, labels, pretrained=True).to(accelerator.device)
                splits = {
                    split: Split(data.PatchExamples(dataset, p, spec, backbone.patch, config.labels), config.workers)
                    for split, p in pairs.items()
                }
            set_seed(config.seed)
            head = make_head(config.head, labels, backbone, len(dataset.classes)).to(accelerator.device)
            probe = Probe(backbone, head, finetune=config.full_finetune, dtype=dtype)
            plans = {"val": list(loop.batched(range(len(pairs["val"])), config.batch_size))}
            rows = fill_batches(range(len(pairs["train"])), config.batch_size).tolist()
            plans["train"] = list(loop.batched(rows, config.batch_size))
            title = f"{name}: {labels} labels of {dataset.name}, {config.head} head on {keep} tokens"
            report.print_parts(accelerator, title, report.parameters(backbone=backbone, head=head))
            if config.cache != "off" and splits["train"].features is None:
                size = features_size(list(splits.values()), probe)
                accelerator.print(f"features: {size / 1e9:.2f} GB, computed once, kept in {config.cache}")
                check_room(size, config.cache, run_dir)
                for split, part in splits.items():
                    path = run_dir / f"{split}.features" if config.cache == "disk" else None
                    part.keep(plans[split], accelerator, probe, path)
            folder.mkdir(parents=True, exist_ok=True)
            outcome = train(config, accelerator, probe, splits, plans["val"], labels, folder, peak)
            results.append({"backbone": name, "labels": labels, "head": config.head, "tokens": keep} | outcome)
            write_json(folder / OUTCOME, results[-1])
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nothing is kept of a head
    (run_dir / "checkpoints").rmdir()
    content = {"dataset": dataset.name, "images": {s: len(p) for s, p in pairs.items()}, "partial": config.partial}
    content |= {"classes": len(dataset.classes), "probes": results}
    draw_comparison(run_dir / "comparison.png", results)
    write_json(run_dir / RESULTS, content)
    accelerator.print(f"\n{results_table(results)}")
    accelerator.print(f"\nEverything is in {run_dir}/: {', '.join(sorted(p.name for p in run_dir.glob('[!.]*')))}")
    return content


if __name__ == "__main__":
    command.run(main, parse_probe)
