"""Patch probing: how well a small head reads from a frozen vision backbone what is in each patch of an image.

`accelerate launch recipes/probe.py` alone compares two tiny backbones on the miniature world; `--help` lists every
setting.
"""

from prismatic.checkpoints.lock import releases
from recipes import cli
from recipes.config.probe import ProbeConfig, parse_probe

RESULTS = "results.json"
DATA = "data.json"  # fingerprint of what is probed on
MAY_CHANGE = ("workers", "run_root", "cache", "data_root")


@releases
def main(config: ProbeConfig) -> dict:
    """Probes every backbone with every kind of labels and returns the content of `results.json`."""
    from eval.probing import data, run
    from eval.probing.evaluate import results_table
    from eval.probing.plots import draw_comparison
    from prismatic.checkpoints.run_folder import finished_run, open_run
    from prismatic.data.fingerprints import check_same, of_pairs
    from prismatic.training import loop
    from vision_backbones.files import read_json, write_json

    accelerator = loop.launch(config.precision, [], config.run_root)
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes were started: probing uses one process")

    # What can fail early fails here, before any weights are read.
    dataset, specs = run.check(config)
    root = data.find_root(dataset, config.data_root)
    pairs = {split: data.list_pairs(dataset, root, split, config.partial) for split in dataset.folders}
    accelerator.print(
        f"{dataset.name}: {', '.join(f'{len(p):,} {s}' for s, p in pairs.items())} images with label maps"
    )
    run_dir = open_run(config, accelerator, f"{'+'.join(config.backbone)}+probe", MAY_CHANGE, finished=RESULTS)
    if content := finished_run(run_dir, accelerator, RESULTS):
        return content
    fingerprint = of_pairs(pairs)
    if (run_dir / DATA).is_file():
        check_same(read_json(run_dir / DATA, "choose another --run_id"), fingerprint, run_dir)
    write_json(run_dir / DATA, fingerprint)

    results = run.run_probes(config, accelerator, dataset, specs, pairs, run_dir)
    (run_dir / "checkpoints").rmdir()
    content = {"dataset": dataset.name, "images": {s: len(p) for s, p in pairs.items()}, "partial": config.partial}
    content |= {"pretrained": config.pretrained}
    content |= {"classes": len(dataset.classes), "probes": results}
    draw_comparison(run_dir / "comparison.png", results)
    write_json(run_dir / RESULTS, content)
    accelerator.print(f"\n{results_table(results)}")
    accelerator.print(f"\nEverything is in {run_dir}/: {', '.join(sorted(p.name for p in run_dir.glob('[!.]*')))}")
    return content


if __name__ == "__main__":
    cli.run(main, parse_probe)
