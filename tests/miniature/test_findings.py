"""What the study finds: statistics, the plan's comparisons, words and reports, from records of seeds."""

import json
import math
import re
from dataclasses import replace

import pytest
from golden_cases import ROOT

from eval.runner import data_root, read_jobs
from recipes.config.reproduce import ReproduceConfig
from recipes.reproduce import plan, report, run
from recipes.reproduce.__main__ import main
from recipes.reproduce.findings import collect, constant_score, paired, spread, too_wide, with_holm
from recipes.reproduce.plan import CELLS, CLAIM, COMPARISONS, LABELS, TASKS, WIDEST, Study
from recipes.reproduce.seeds import record, record_path
from recipes.reproduce.words import DECIDED, in_words

BASE = "original@second-to-last, gelu-mlp"
FEW = replace(ReproduceConfig(), eval_scenes=8)


def test_intervals_and_tests_over_seeds():
    values, others = [0.5, 0.6, 0.55, 0.7, 0.65], [0.52, 0.66, 0.6, 0.71, 0.72]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    found = spread(values)
    assert found["mean"] == pytest.approx(mean)
    assert found["interval"] == pytest.approx([mean - 2.776445 * error, mean + 2.776445 * error], abs=1e-6)
    difference = [b - a for a, b in zip(values, others, strict=True)]
    mean = sum(difference) / 5
    t = mean / math.sqrt(sum((d - mean) ** 2 for d in difference) / 4 / 5)
    # Student's distribution with four degrees of freedom, in closed form.
    x = t / math.sqrt(4 + t * t)
    p = 1 - (1.5 * x - 0.5 * x**3)
    assert paired(values, others)["p"] == pytest.approx(p, rel=1e-6)
    assert spread([0.3]) == {"mean": 0.3, "interval": None, "values": [0.3]} and paired([0.3], [0.4])["p"] is None


def test_holms_method():
    """Against its definition: the smallest p-value times the number of comparisons, the next times one fewer, ..."""
    rows = with_holm([{"p": p} for p in (0.04, 0.01, None, 0.03)], planned=5)
    assert [row["holm"] for row in rows] == pytest.approx([0.12, 0.05, None, 0.12])
    assert with_holm([{"p": 0.5}, {"p": 0.4}], planned=2) == [{"p": 0.5, "holm": 0.8}, {"p": 0.4, "holm": 0.8}]
    assert with_holm([{"p": 0.7}], planned=2)[0]["holm"] == 1.0


def test_cells_and_comparisons_are_those_of_the_plan_that_was_written_before():
    told = (ROOT / "docs" / "results" / "plan.md").read_text()
    cells, read = {}, {"pretrained-decoder": "last", "transformer": "second-to-last"}  # where it is no choice
    for code, backbone, block, projector in re.findall(r"^\| ([OA].) \| (\w+) \| ([^|]+) \| ([\w-]+)", told, re.M):
        assert block == read.get(projector, block)
        block = f"@{block}" if projector == "gelu-mlp" else ""
        cells[code] = f"{backbone}{block}, {projector}"
    assert sorted(cells.values()) == sorted(CELLS) and len(cells) == 8
    pairs = re.findall(r"^\d\. ([OA].) - ([OA].)[:;]", told, re.M)
    assert tuple((cells[one], cells[other]) for one, other in pairs) == COMPARISONS
    for cell, (backbone, projector) in CELLS.items():
        assert cell == f"{backbone}, {projector}"
    told = " ".join(told.split())
    assert CLAIM == COMPARISONS[:2] and "only if 1 and 2 are both decided" in told
    assert (
        f"wider than {WIDEST} in all" in told
        and f"Holm's method over the five primary comparisons at {DECIDED}" in told
    )
    benchmarks = re.search(r"six benchmarks: (.*?) as before, and (\S+)-like pairs", told)
    named = benchmarks[1].replace(",", "").replace(" and ", " ").split()
    assert [*named, f"{benchmarks[2]}+llava"] == list(TASKS)
    config = ReproduceConfig()
    assert (config.seeds, config.more_seeds, config.ablation_seeds, config.eval_scenes) == (5, 2, 3, 200)
    assert "**Seeds**: five. Two more are added" in told and "three seeds" in told and "200 scenes each" in told


def made_up_seed(number: int, scores: dict[str, float]) -> dict:
    """The record of a seed whose cells have these scores on every benchmark, the others 0.5."""
    scores = dict.fromkeys(CELLS, 0.5) | scores
    return {
        "seed": number,
        "own": number > 0,
        "image_level": {"recall": 0.9, "precision": 0.9},
        "probes": {h: {k: {"original": 0.2, "aligned": 0.4 + 0.01 * number} for k in LABELS} for h in plan.HEADS},
        "ablations": {},
        "scores": {task: scores for task in TASKS},
        "questions": dict.fromkeys(TASKS, 100),
        "majority": dict.fromkeys(TASKS, 0.3),
        "chance": dict.fromkeys(TASKS, 0.25),
        "losses": dict.fromkeys(CELLS, 0.4),
        "stages": [
            {
                "name": f"seed-{number}/align",
                "kind": "align",
                "folder": "seed-align-01234567",
                "flops": 1e12,
                "command": "python -m recipes.align",
                "processor_seconds": 60.0,
                "commit": f"{'ab' * 20}-dirty",
                "versions": {"torch": f"2.{number}"},
            }
        ],
    }


def test_comparisons_are_of_the_mean_score_and_decide_whether_seeds_are_added():
    a1, o1, o2 = "aligned@last, gelu-mlp", "original@last, gelu-mlp", BASE
    gains = (0.10, 0.12, 0.11, 0.13, 0.12)
    seeds = [made_up_seed(n, {a1: 0.5 + gain, o1: 0.3}) for n, gain in enumerate(gains)]
    found = collect(FEW, seeds)
    compared = {(row["cell"], row["other"]): row for row in found["comparisons"]}
    expected = paired([0.5] * 5, [0.5 + gain for gain in gains])
    assert compared[a1, o2]["mean"] == pytest.approx(0.116) and compared[a1, o2]["p"] == pytest.approx(expected["p"])
    # Two of five comparisons differ at all: the smaller p-value counts five times, the other four times.
    smaller = paired([0.3] * 5, [0.5 + gain for gain in gains])["p"]
    assert [compared[a1, o]["holm"] for o in (o2, o1)] == pytest.approx([4 * expected["p"], 5 * smaller])
    assert compared["aligned, truncated", "original, truncated"]["holm"] is None
    assert len(found["by_benchmark"]) == 5 * len(TASKS) and not too_wide(found)
    said = in_words(found)
    assert f"it is higher for “{a1}” against “{o2}” (+0.116)" in said
    assert "The claim that alignment helps the VLM with gelu-mlp is made" in said

    seeds[4]["scores"] = {task: seeds[4]["scores"][task] | {a1: 0.2} for task in TASKS}
    found = collect(FEW, seeds)
    said = in_words(found)
    assert too_wide(found) and f"is not made; not decided in its favour: “{a1}” against “{o2}”" in said
    one = collect(FEW, seeds[:1])
    said = in_words(one)
    assert not too_wide(one) and "This is one seed" in said and "clearly" not in said and "decided" not in said
    assert "from 0.200 to 0.400 (linear head)" in said and "claim" not in said


def test_answers_without_looking_are_the_best_of_chance_prior_and_majority():
    found = collect(FEW, [made_up_seed(0, {BASE: 0.28}), made_up_seed(1, {BASE: 0.28})])
    found["lines"] = {task: {"majority": None, "prior": 0.0, "chance": 0.25} for task in TASKS}
    assert f"On all 6 benchmarks all {len(CELLS)} VLMs score above" in in_words(found)
    found["lines"]["vsr"]["majority"] = 0.3
    assert "8 of 8 VLMs on refcoco, " in in_words(found) and "7 of 8 VLMs on vsr" in in_words(found)


def test_the_record_of_a_seed_spares_its_stages(tmp_path):
    config = replace(ReproduceConfig(), run_root=str(tmp_path))
    study = Study(config, range(2))
    assert record(study, 0) is None
    record_path(study, 1).write_text(json.dumps(made_up_seed(1, {})))
    assert record(Study(config, range(1, 2)), 1) == made_up_seed(1, {}), "whatever other seeds are planned"
    changed = Study(replace(config, probe_scenes=600), range(2))
    assert record(changed, 1) is None, "other settings, another record"


@pytest.mark.parametrize("torn", ["", '{"seed": 2', '{"seed": 2}'])
def test_a_torn_record_is_named(tmp_path, torn):
    study = Study(replace(ReproduceConfig(), run_root=str(tmp_path)), range(1))
    path = record_path(study, 0)
    path.write_text(torn)
    with pytest.raises(ValueError, match=f"{path.name} cannot be read .*: delete it, or copy it again"):
        record(study, 0)


@pytest.mark.parametrize(
    ("spread_of_gains", "more", "seeds"),
    [(0.2, 2, 7), pytest.param(0.2, 0, 5, marks=pytest.mark.slow), (0.001, 2, 5)],
)
def test_seeds_are_added_where_an_interval_is_wide(tmp_path, monkeypatch, spread_of_gains, more, seeds, capsys):
    """All seeds have records, so that nothing is run."""
    monkeypatch.setattr(run, "start", None)
    config = replace(FEW, run_root=str(tmp_path / "stages"), out=str(tmp_path / "out"), more_seeds=more)
    study = Study(config, range(7))
    (tmp_path / "stages").mkdir()
    made = [made_up_seed(n, {"aligned@last, gelu-mlp": 0.5 + spread_of_gains * (n % 2)}) for n in range(7)]
    for one in made:
        record_path(study, one["seed"]).write_text(json.dumps(one))
    found = main(config)
    assert [one["seed"] for one in found["seeds"]] == list(range(seeds))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["seeds"] == made[:seeds]
    told = " ".join((tmp_path / "out" / "miniature.md").read_text().split())
    assert "commit abababab-dirty and torch 2.0, torch 2.1," in told
    assert f"{seeds} seeds{', 2 of them added because' if seeds == 7 else ';'}" in told
    assert ("more if an interval" in capsys.readouterr().out) == bool(more)


def test_a_constant_answer_scores_its_share():
    jobs = {job.key: job for job in read_jobs(["vsr", "ai2d"], data_root("miniature:8"), allow_partial=True)}
    for key, answer in (("vsr", "True"), ("ai2d", "C")):
        examples = jobs[key].examples
        share = sum(e.answer == answer for e in examples) / len(examples)
        assert 0 < constant_score(jobs[key], answer) == pytest.approx(share)


def test_the_shipped_report_is_what_its_results_give(tmp_path):
    results = ROOT / "docs" / "results"
    shipped = json.loads((results / "results.json").read_text())
    again = collect(ReproduceConfig(**shipped["settings"]), shipped["seeds"])
    assert json.loads(json.dumps(again)) == shipped, "statistics are those of the seeds' records"
    report.write(tmp_path, shipped)
    for name in ("miniature.md", "results.json"):
        assert (tmp_path / name).read_text() == (results / name).read_text()
    assert "<li>" not in (tmp_path / "report.html").read_text()


def test_what_is_said_about_what_decides_the_differences():
    """Finetunes that ended on the plateau, the mean score of the others, and what five seeds said."""
    seeds = json.loads((ROOT / "docs/results/results.json").read_text())["seeds"]
    designs = (ROOT / "docs/results/designs.md").read_text()
    scored = {}
    for cell in CELLS:
        means = [(s["losses"][cell], sum(scores[cell] for scores in s["scores"].values()) / 6) for s in seeds]
        others = [mean for loss, mean in means if loss <= 0.5]
        assert all(mean < 0.33 for loss, mean in means if loss > 0.5)
        scored[cell] = sum(others) / len(others) if others else None
        told = f"{scored[cell]:.3f}" if others else ""
        assert f"| {cell} | {len(means) - len(others)} | {told} |" in designs
    pairs = [(scored[one], scored[other]) for one, other in COMPARISONS]
    assert all(abs(one - other) < 0.07 for one, other in pairs if other is not None)
    assert sum(row["holm"] < 0.05 for row in collect(ReproduceConfig(), seeds)["comparisons"]) == 1
    five = collect(ReproduceConfig(), seeds[:5])["comparisons"]
    assert f"{min(row['holm'] for row in five):.3f}" == "0.056" and "p by Holm's method 0.056" in designs
    widths = sorted(high - low for low, high in (row["interval"] for row in five))
    told = f"wider than {WIDEST} ({widths[0]:.2f} to {widths[-1]:.2f}), so seeds 5 and 6 were added"
    assert told in (ROOT / "docs/results/plan.md").read_text()
