"""z-scores against what the reference's aggregation wrote."""

import pytest
from golden_cases import golden_dir, load_json, requires_golden
from scipy import stats

from eval.scoring.zscores import REFERENCE, aggregated, z_scores

PATH = "C_vlmeval/z_scores.json"
OURS = {
    ("vqa-v2_vqa-v2-full", "accuracy"): ("vqav2", "accuracy"),
    ("gqa_gqa-full", "accuracy"): ("gqa", "accuracy"),
    ("vizwiz_vizwiz-full", "accuracy__VizWiz-Overall"): ("vizwiz", "accuracy"),
    ("text-vqa_text-vqa-full", "accuracy__TextVQA-OCR"): ("textvqa-ocr", "accuracy"),
    ("text-vqa_text-vqa-full", "accuracy__TextVQA-Pure"): ("textvqa", "accuracy"),
    ("refcoco_refcoco-full", "accuracy__RefCOCO"): ("refcoco", "accuracy/RefCOCO"),
    ("refcoco_refcoco-full", "accuracy__RefCOCO+"): ("refcoco", "accuracy/RefCOCO+"),
    ("refcoco_refcoco-full", "accuracy__RefCOCOg"): ("refcoco", "accuracy/RefCOCOg"),
    ("ocid-ref_ocid-ref-full", "accuracy__OCIDRef-All"): ("ocid-ref", "accuracy"),
    ("ocid-ref_ocid-ref-full", "accuracy__OCIDRef-Minimum"): ("ocid-ref", "accuracy/Minimum"),
    ("pope-full_experiments", "accuracy"): ("pope", "mean_accuracy"),
    ("vsr_vsr-full", "accuracy__VSR-ExactMatch"): ("vsr", "accuracy"),
}


def cases() -> list[dict]:
    return load_json(PATH) if (golden_dir() / PATH).exists() else []


def scored(case: dict) -> dict:
    """z-scores of a case, of the metrics that the reference takes, of the tasks that the case asks for."""
    runs: dict = {}
    for run, tasks in case["inputs"].items():
        for (theirs, metric), (task, ours) in OURS.items():
            value = tasks.get(theirs, {}).get(metric)
            runs.setdefault(run, {}).setdefault(task, {})[ours] = value
    asked = {OURS[key][0] for key in OURS if case["tasks"] == "all" or key[0] in case["tasks"].split(",")}
    return z_scores(runs, [pair for pair in REFERENCE if pair[0] in asked])


@requires_golden
@pytest.mark.parametrize(
    "case", [c for c in cases() if "outputs" in c], ids=lambda c: f"{c['tasks']}-{len(c['inputs'])}"
)
def test_as_the_reference(case):
    z = scored(case)
    assert set(z) == set(case["outputs"])
    for run, mean in aggregated(z).items():
        expected = case["outputs"][run]
        assert mean == pytest.approx(expected["aggregated-z_score"], abs=1e-12)
        for (theirs, metric), (task, ours) in OURS.items():
            found = z[run].get(task, {}).get(ours)
            of_task = expected.get(theirs, {})
            assert (found is not None) == (f"{metric}-z_score" in of_task), (run, theirs, metric)
            for name in found or ():
                assert found[name] == pytest.approx(of_task[f"{metric}-{name}"], abs=1e-9)


@requires_golden
@pytest.mark.parametrize("case", [c for c in cases() if "error" in c], ids=lambda c: c["error"])
def test_where_the_reference_raises(case):
    z = scored(case)
    (task,) = {task for tasks in z.values() for task in tasks}
    theirs = next(key for key, pair in OURS.items() if pair[0] == task)
    values = [tasks[theirs[0]][theirs[1]] for tasks in case["inputs"].values()]
    found = [z[run][task][OURS[theirs][1]]["z_score"] for run in case["inputs"]]
    if len(set(values)) == 1:
        assert found == [None] * len(values)
        assert set(aggregated(z).values()) == {None}
    else:  # a whole number is a number
        assert found == pytest.approx(stats.zscore([float(v) for v in values]), abs=1e-12)


def test_equal_scores_whose_mean_is_rounded():
    runs = {name: {"vsr": {"accuracy": 0.1}, "gqa": {"accuracy": x}} for name, x in zip("abc", (1, 2, 3), strict=True)}
    z = z_scores(runs, [("vsr", "accuracy"), ("gqa", "accuracy"), ("pope", "mean_accuracy")])
    assert [z[name]["vsr"]["accuracy"]["z_score"] for name in "abc"] == [None] * 3
    assert [aggregated(z)[name] for name in "abc"] == pytest.approx(stats.zscore([1.0, 2.0, 3.0]))
