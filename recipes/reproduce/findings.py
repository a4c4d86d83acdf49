"""What came out of a study: scores by cell and seed, with intervals and tests over seeds."""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from recipes.reproduce.plan import (
    ABLATIONS,
    COMPARISONS,
    HEADS,
    LABELS,
    PAPERS,
    TASKS,
    WIDEST,
)

QUESTION_KIND = {
    "refcoco": "box", "ocid-ref": "box", "tallyqa": "tally", "vsr": "statement",
    "ai2d": "choice", "mmvp+llava": "choice",
}  # fmt: skip
BOX_IOU = {"refcoco": 0.5, "ocid-ref": 0.25}  # from which a box is right
BOTH = ("original", "aligned")
NOT_ALIGNED = "not aligned"


def collect(config, seeds: Sequence[dict]) -> dict:
    """All findings, JSON-able.

    Args:
        config: A `ReproduceConfig`.
        seeds: What `seeds.record` gives of each seed.
    """
    probes = {
        (head, labels): {which: [seed["probes"][head][labels][which] for seed in seeds] for which in BOTH}
        for head in HEADS
        for labels in LABELS
    }
    cells = list(seeds[0]["losses"])
    scores = {task: {cell: [seed["scores"][task][cell] for seed in seeds] for cell in cells} for task in TASKS}
    means = {
        cell: [sum(one) / len(TASKS) for one in zip(*(scores[t][cell] for t in TASKS), strict=True)] for cell in cells
    }
    compared = [(cell, other) for cell, other in COMPARISONS if {cell, other} <= set(cells)]
    z, mean_z = z_of_seeds(scores, len(seeds))
    return {
        "settings": asdict(config),
        "probes": [
            {"head": head, "labels": labels}
            | {which: spread(values[which]) for which in BOTH}
            | {"difference": paired(values["original"], values["aligned"])}
            for (head, labels), values in probes.items()
        ],
        "commonest_class": commonest_class(),
        "ablations": _ablations(seeds),
        "benchmarks": {task: {cell: spread(values) for cell, values in scores[task].items()} for task in TASKS},
        "means": {cell: spread(values) for cell, values in means.items()},
        "losses": {cell: spread([seed["losses"][cell] for seed in seeds]) for cell in cells},
        "comparisons": with_holm(
            [{"cell": one, "other": other} | paired(means[other], means[one]) for one, other in compared],
            planned=len(COMPARISONS),
        ),
        "by_benchmark": with_holm(
            [
                {"cell": one, "other": other, "task": task} | paired(scores[task][other], scores[task][one])
                for one, other in compared
                for task in TASKS
            ],
            planned=len(COMPARISONS) * len(TASKS),
        ),
        "mean_z": {cell: spread(values) for cell, values in mean_z.items()},
        "z_by_task": {task: {cell: spread(values) for cell, values in z[task].items()} for task in TASKS},
        "lines": {
            task: {"majority": seeds[0]["majority"][task], "chance": seeds[0]["chance"][task], "prior": prior}
            for task, prior in answer_priors_of_tasks(config.eval_scenes).items()
        },
        "seeds": list(seeds),
    }


def too_wide(found: dict) -> bool:
    """Whether the plan asks for more seeds: a planned comparison's interval is wider than `WIDEST`."""
    intervals = [row["interval"] for row in found["comparisons"] if row["interval"]]
    return any(high - low > WIDEST for low, high in intervals)


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
    p = float(stats.ttest_rel(after, before).pvalue) if len(differences) > 1 and np.ptp(differences) > 1e-12 else None
    return {"mean": found["mean"], "interval": found["interval"], "p": p}


def with_holm(rows: list[dict], planned: int) -> list[dict]:
    """The rows, each with `holm`, its p-value by Holm's method; None where it has none.

    Args:
        rows: Each with `p`.
        planned: How many comparisons were planned, which counts even if fewer were made.
    """
    found, highest = [dict(row, holm=None) for row in rows], 0.0
    known = sorted((row for row in found if row["p"] is not None), key=lambda row: row["p"])
    for place, row in enumerate(known):
        highest = row["holm"] = max(highest, min(1.0, (planned - place) * row["p"]))
    return found


def z_of_seeds(scores: dict[str, dict[str, list[float]]], seeds: int) -> tuple[dict, dict]:
    """Z-scores over the cells of each seed: by task and cell, and their means by cell."""
    from eval.scoring.zscores import aggregated, z_scores

    cells, metrics = list(scores[TASKS[0]]), [(task, "score") for task in TASKS]
    z = [
        z_scores({cell: {t: {"score": scores[t][cell][seed]} for t in TASKS} for cell in cells}, metrics)
        for seed in range(seeds)
    ]
    by_task = {t: {cell: [row[cell][t]["score"]["z_score"] or 0.0 for row in z] for cell in cells} for t in TASKS}
    return by_task, {cell: [aggregated(row)[cell] or 0.0 for row in z] for cell in cells}


def commonest_class(scenes: int = 1000) -> float:
    """The share of scenes that hold the commonest class: below one half, a head that does not look finds none."""
    import numpy as np

    from prismatic.miniature.llava_writer import TRAIN_SEED
    from prismatic.miniature.scenes import sample_layout

    layouts = [sample_layout(np.random.default_rng((TRAIN_SEED, 3, index))) for index in range(scenes)]
    held = Counter(name for things in layouts for name in {thing.name for thing in things})
    return held.most_common(1)[0][1] / scenes


@functools.cache
def answer_priors_of_tasks(scenes: int) -> dict[str, float]:
    """Score by task of giving the commonest training answer of its kind of question, whatever the picture.

    A box is hardly ever the same: the prior is that training box which a benchmark would count right for most training
    questions.
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
    overlaps = np.array([[parsing.iou(box, other) for other in sample] for box in sample])
    likeliest = {task: boxes[int((overlaps >= iou).sum(1).argmax())] for task, iou in BOX_IOU.items()}
    jobs = runner.read_jobs(TASKS, runner.data_root(f"miniature:{scenes}"), allow_partial=True)
    return {job.key: constant_score(job, likeliest.get(job.key) or priors[QUESTION_KIND[job.key]]) for job in jobs}


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


def _ablations(seeds: Sequence[dict]) -> list[dict]:
    """Macro recall of patches with the linear head, of the seeds that were ablated; differences from the paper's."""
    seeds = [seed for seed in seeds if seed["ablations"]]
    if not seeds:
        return []
    rows = {NOT_ALIGNED: [seed["probes"]["linear"][LABELS[0]]["original"] for seed in seeds]}
    rows |= {name: [seed["ablations"][name] for seed in seeds] for name in ABLATIONS}
    others = [name for name in ABLATIONS if name != PAPERS]
    differences = with_holm([paired(rows[PAPERS], rows[name]) for name in others], planned=len(others))
    against = dict(zip(others, differences, strict=True)) | {NOT_ALIGNED: paired(rows[PAPERS], rows[NOT_ALIGNED])}
    return [{"name": name} | spread(values) | {"difference": against.get(name)} for name, values in rows.items()]
