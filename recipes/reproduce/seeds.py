"""What came out of one seed, as a record that stands without the seed's stages: a file in the folder of stages."""

import hashlib
import json
from pathlib import Path
from statistics import fmean

from recipes.reproduce.costs import costs, image_level
from recipes.reproduce.plan import ABLATIONS, CELLS, HEADS, LABELS, TASKS, Study
from recipes.reproduce.run import pending

NAMES = ("image_level", "probes", "ablations", "scores", "losses", "stages")  # which a record has
LAST_STEPS = 40  # of a finetune, over which its loss at the end is meant


def record(study: Study, seed: int) -> dict | None:
    """The scores and costs of a seed, JSON-able; None where some of its stages have not ended.

    It is written beside the stages when they have ended, and read from there afterwards. Copied into another
    machine's folder of stages, it spares that machine the seed.

    Raises:
        ValueError: A record is torn, or another file.
    """
    from vision_backbones.files import read_json, write_json

    path = record_path(study, seed)
    if path.is_file():
        return read_json(path, "delete it, or copy it again", *NAMES)
    if pending(study.of_seed(seed)):
        return None
    found = _collect(study, seed)
    write_json(path, found)
    return found


def record_path(study: Study, seed: int) -> Path:
    """Where the record of a seed is kept; its name ends in a fingerprint of the folders of all of the seed's stages."""
    names = "\n".join(stage.folder.name for stage in study.of_seed(seed))
    return Path(study.config.run_root) / f"seed-{seed}-{hashlib.sha256(names.encode()).hexdigest()[:8]}.json"


def _collect(study: Study, seed: int) -> dict:
    stages = {stage.name.partition("/")[2]: stage for stage in study.of_seed(seed)}
    cells = [cell for cell in CELLS if f"evaluate, {cell}" in stages]
    tasks = {cell: _json(stages[f"evaluate, {cell}"], "results.json")["tasks"] for cell in cells}
    first = tasks[cells[0]]
    return {
        "seed": seed,
        "own": "pretrain" in stages,
        "image_level": image_level(study.backbones(seed)["original"]),
        "probes": {head: _both(_json(stages[f"probe, {head} head"], "results.json")["probes"]) for head in HEADS},
        "ablations": {
            name: _recalls(_json(stages[f"probe, {name}, linear head"], "results.json")["probes"], LABELS[0])[-1]
            for name in ABLATIONS
            if f"probe, {name}, linear head" in stages
        },
        "scores": {t: {cell: tasks[cell][t]["metrics"][tasks[cell][t]["main"]] for cell in cells} for t in TASKS},
        "questions": {task: first[task]["examples"] for task in TASKS},
        "majority": {task: first[task]["majority"] for task in TASKS},
        "chance": {task: first[task]["chance"] for task in TASKS},
        "losses": {cell: _loss_at_the_end(stages[f"finetune, {cell}"].folder) for cell in cells},
        "stages": costs(study, seed),
    }


def _both(probes: list[dict]) -> dict[str, dict[str, float]]:
    """Macro recall by labels of the original and the aligned backbone."""
    return {labels: dict(zip(("original", "aligned"), _recalls(probes, labels), strict=True)) for labels in LABELS}


def _recalls(probes: list[dict], labels: str) -> list[float]:
    """Macro recall of each backbone in the last epoch, which nobody chose."""
    return [probe["last"]["scores"]["macro_recall"] for probe in probes if probe["labels"] == labels]


def _loss_at_the_end(folder: Path) -> float:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return fmean([line["loss"] for line in lines if "loss" in line][-LAST_STEPS:])


def _json(stage, file: str) -> dict:
    return json.loads((stage.folder / file).read_text())
