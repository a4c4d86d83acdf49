"""What came out of a study: scores by cell and seed, with intervals and tests over seeds, and what they cost."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from recipes.reproduce.costs import costs, image_level
from recipes.reproduce.plan import (
    ABLATIONS,
    BASE,
    CELLS,
    CONTROLS,
    HEADS,
    PAPERS,
    TASKS,
    Study,
)

QUESTION_KIND = {"refcoco": "box", "ocid-ref": "box", "tallyqa": "tally", "vsr": "statement", "ai2d": "choice"}
LOCAL, GLOBAL = "union", "global-union"


def collect(study: Study) -> dict:
    """All findings of a study whose stages have ended, JSON-able."""
    from eval.scoring.zscores import aggregated, z_scores

    seeds = range(study.config.seeds)
    probes = {
        head: {
            (labels, which): [_probed(study, seed, f"probe, {head} head", labels, which) for seed in seeds]
            for labels in (LOCAL, GLOBAL)
            for which in ("original", "aligned")
        }
        for head in HEADS
    }
    evaluated = {
        cell: [_json(study, f"seed-{seed}/evaluate, {cell}", "results.json")["tasks"] for seed in seeds]
        for cell in CELLS
        if f"seed-0/evaluate, {cell}" in study.stages
    }
    benchmarks = {
        task: {cell: [run[task]["metrics"][run[task]["main"]] for run in runs] for cell, runs in evaluated.items()}
        for task in TASKS
    }
    metrics = [(task, "score") for task in TASKS]
    z = [
        z_scores({cell: {t: {"score": benchmarks[t][cell][seed]} for t in TASKS} for cell in evaluated}, metrics)
        for seed in seeds
    ]
    mean_z = {cell: [aggregated(row)[cell] or 0.0 for row in z] for cell in evaluated}
    return {
        "settings": asdict(study.config),
        "image_level": [_pretrained(study, seed) for seed in seeds],
        "probes": [
            {"head": head, "labels": labels}
            | {which: spread(rows[labels, which]) for which in ("original", "aligned")}
            | {"difference": paired(rows[labels, "original"], rows[labels, "aligned"])}
            for head, rows in probes.items()
            for labels in (LOCAL, GLOBAL)
        ],
        "commonest_class": commonest_class(),
        "ablations": _ablations(study, probes["linear"]),
        "benchmarks": {task: _against_base(by_cell) for task, by_cell in benchmarks.items()},
        "mean_z": _against_base(mean_z),
        "controls": against_controls(mean_z),
        "z_by_task": {
            task: {cell: spread([row[cell][task]["score"]["z_score"] or 0.0 for row in z]) for cell in evaluated}
            for task in TASKS
        },
        "lines": {
            task: {"majority": evaluated[BASE][0][task]["majority"], "answer prior": prior}
            for task, prior in answer_priors_of_tasks(study.config.eval_scenes).items()
        },
        "stages": costs(study),
    }


def spread(values: Sequence[float]) -> dict:
    """Mean over seeds with its 95 % t-interval; no interval of one seed."""
    import numpy as np
    from scipy import stats

    values = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else None
    mean = float(values.mean())
    interval = None if half is None else [mean - float(half), mean + float(half)]
    return {"mean": mean, "interval": interval, "values": values.tolist()}


def paired(before: Sequence[float], after: Sequence[float]) -> dict:
    """`after - before` of the same seeds: mean, 95 % interval and two-sided p-value of a paired t-test."""
    import numpy as np
    from scipy import stats

    differences = np.subtract(after, before)
    found = spread(differences)
    p = float(stats.ttest_rel(after, before).pvalue) if len(differences) > 1 and np.ptp(differences) else None
    return {"mean": found["mean"], "interval": found["interval"], "p": p}


def _against_base(by_cell: dict[str, list[float]]) -> dict[str, dict]:
    base = by_cell[BASE]
    return {c: spread(v) | {"difference": paired(base, v) if c != BASE else None} for c, v in by_cell.items()}


def against_controls(by_cell: dict[str, list[float]]) -> dict[str, dict]:
    """What a cell has more than its control of the same size, of those that were run."""
    both = {cell: control for cell, control in CONTROLS.items() if {cell, control} <= set(by_cell)}
    return {cell: paired(by_cell[control], by_cell[cell]) for cell, control in both.items()}


def commonest_class(scenes: int = 1000) -> float:
    """The share of scenes that hold the commonest class: below one half, a head that does not look finds none."""
    import numpy as np

    from prismatic.miniature.llava_writer import TRAIN_SEED
    from prismatic.miniature.scenes import sample_layout

    layouts = [sample_layout(np.random.default_rng((TRAIN_SEED, 3, index))) for index in range(scenes)]
    held = Counter(name for things in layouts for name in {thing.name for thing in things})
    return held.most_common(1)[0][1] / scenes


def answer_priors_of_tasks(scenes: int) -> dict[str, float]:
    """Score by task of giving the commonest training answer of its kind of question, whatever the picture.

    A box is hardly ever the same: the prior is that training box which is right for most training questions.
    """
    import numpy as np

    from eval import runner
    from prismatic.miniature.language import answer_priors
    from prismatic.miniature.llava_writer import training_questions
    from prismatic.text import parsing

    asked = training_questions()
    priors = answer_priors(asked)
    boxes = [q.answer for q in asked if q.kind == "box"]
    sample = [parsing.parse_box(text) for text in boxes[:300]]
    hits = [sum(parsing.iou(box, other) >= 0.5 for other in sample) for box in sample]
    priors["box"] = boxes[int(np.argmax(hits))]
    jobs = runner.read_jobs(TASKS, runner.data_root(f"miniature:{scenes}"), allow_partial=True)
    return {job.key: constant_score(job, priors[QUESTION_KIND[job.key]]) for job in jobs}


def constant_score(job, answer: str) -> float:
    """What a benchmark gives to one answer to all of its questions."""
    from eval.runner import judge
    from eval.task import Choose

    records = []
    for example in job.examples:
        kind, record = job.task.answer(example), asdict(example) | {"output": answer}
        if isinstance(kind, Choose):
            record["probabilities"] = [float(option == answer) for option in kind.options]
        records.append(judge(job.task, record))
    return job.task.scorer.summarise(records)[job.task.scorer.main]


def _ablations(study: Study, linear: dict) -> list[dict]:
    seeds = range(min(study.config.ablation_seeds, study.config.seeds))
    if not seeds:
        return []
    rows = {"not aligned": [linear[LOCAL, "original"][seed] for seed in seeds]}
    for name in ABLATIONS:
        rows[name] = [_probed(study, seed, f"probe, {name}, linear head", LOCAL, "aligned") for seed in seeds]
    paper = rows[PAPERS]
    return [{"name": n} | spread(v) | {"difference": paired(paper, v)} for n, v in rows.items()]


def _probed(study: Study, seed: int, name: str, labels: str, which: str) -> float:
    """Macro recall of a backbone in the last epoch, which nobody chose."""
    probes = _json(study, f"seed-{seed}/{name}", "results.json")["probes"]
    rows = [row for row in probes if row["labels"] == labels]
    return rows[0 if which == "original" else -1]["last"]["scores"]["macro_recall"]


def _pretrained(study: Study, seed: int) -> dict:
    """What the image-level pretraining of a seed's backbone says of itself."""
    own = f"seed-{seed}/pretrain" in study.stages
    return {"seed": seed, "own": own} | image_level(study.backbones(seed)["original"])


def _json(study: Study, name: str, file: str) -> dict:
    return json.loads((study.stages[name].folder / file).read_text())
