"""What the stages of a study cost: time, as each recorded it, and floating-point operations."""

import json
from pathlib import Path

from tqdm import tqdm

from recipes.reproduce import job as stages
from recipes.reproduce.plan import TASKS, Stage, Study

COUNTED_IMAGES = 8  # whose questions stand for all of a benchmark, where operations of evaluations are counted


def costs(study: Study, seed: int) -> list[dict]:
    """Of every stage of a seed: name, kind, folder, `flops`, and what it recorded of itself.

    `flops` of a training are those of its optimizer steps, as recipes and `make_vit` count them: of a probe, those of
    its heads alone. Those of an evaluation are counted once for all seeds of a cell.
    """
    rows = []
    for stage in tqdm(study.of_seed(seed), desc=f"seed {seed}: counting operations", mininterval=1.0):
        if stage.kind == "evaluate":
            cell = stage.name.partition("/")[2]
            study.counted[cell] = study.counted.get(cell) or evaluation_flops(stage, study.config.eval_scenes)
            flops = study.counted[cell]
        else:
            flops = training_flops(stage)
        metadata = {"name": stage.name, "kind": stage.kind, "folder": stage.folder.name, "flops": flops}
        rows.append(metadata | stages.read(stage.folder))
    return rows


def training_flops(stage: Stage) -> float:
    """Of all optimizer steps of a stage that has ended."""
    if stage.kind == "pretrain":
        return image_level(stage.folder)["flops"]
    if stage.kind == "probe":
        lines = [line for path in stage.folder.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
        return sum(json.loads(line).get("flops", 0) for line in lines)
    return json.loads((stage.folder / "summary.json").read_text())["flops"]


def evaluation_flops(stage: Stage, scenes: int) -> float:
    """Of an evaluation: some questions of each benchmark are answered again and counted, and stand for all."""
    import torch
    from transformers.utils import logging

    from eval import runner
    from eval.generate_engine import load_engine
    from prismatic.flops import flop_counter

    logging.disable_progress_bar()
    (model,) = (str(need.folder) for need in stage.needs)
    engine = load_engine(model, dtype=torch.float32, device="cpu", batch_size=COUNTED_IMAGES * 8)
    total = 0.0
    for job in runner.read_jobs(TASKS, runner.data_root(f"miniature:{scenes}"), allow_partial=True):
        images = list(dict.fromkeys(example.image for example in job.examples))[:COUNTED_IMAGES]
        some = [example for example in job.examples if example.image in images]
        pictures = {example.image: runner.load_picture(job, engine, example) for example in some}
        asked = [(pictures[example.image], example) for example in some]
        with flop_counter() as counter:
            runner.answer_within_memory(job.task, engine, asked)
        total += counter.get_total_flops() / len(asked) * len(job.examples)
    return total


def image_level(backbone: str | Path) -> dict:
    """What the image-level pretraining of a miniature backbone recorded in its weights."""
    from vision_backbones import get_spec
    from vision_backbones.weights import find_weights, read_header

    return json.loads(read_header(find_weights(get_spec(str(backbone))))[1]["image_level"])
