"""Scores against what the reference's scorers gave, and against genuine outputs of LLaVA-1.5-13B."""

import json
from dataclasses import asdict

import pytest
from golden_cases import golden_dir, load_json, requires_golden

from eval.prepared import read_prepared
from eval.task import get_task

TASKS = {
    "refcoco": "refcoco",
    "ocid-ref": "ocid-ref",
    "tally-qa": "tallyqa",
    "vsr": "vsr",
    "ai2d": "ai2d",
    "vqa-v2": "vqav2",
    "gqa": "gqa",
    "vizwiz": "vizwiz",
    "text-vqa": "textvqa",
    "pope": "pope",
}


def scoring_cases() -> list[str]:
    root = golden_dir() / "C_vlmeval" / "scoring"
    return sorted(p.relative_to(root).as_posix() for p in root.glob("*/case_*.json")) if root.is_dir() else []


def judged(task, records):
    return [record | task.scorer.judge(record) for record in records]


def case_examples(family: str, case: dict) -> dict[str, dict]:
    """Example fields by the id that the case's results have."""
    scoring, index = (golden_dir() / "C_vlmeval" / part for part in ("scoring", "index"))
    annotations = case["annotations_file"]
    if not annotations.startswith("datasets/"):
        metadata = json.loads((scoring / family / annotations).read_text())
        # made-up annotations: of choices the subset alone, of boxes the whole row
        return {
            key: {"subset": (row.get("refer_dataset") or row.get("clutter_split", "").split(" ")[0] or row["split"])}
            for key, row in metadata.items()
        }
    folder = index / family / "expected" / "datasets" / family
    path = next(p for p in (folder / "metadata-full.json", folder / "metadata.json") if p.exists())
    ids = list(json.loads(path.read_text()))
    examples = read_prepared(path, family)
    by_order = {key: row for key, row in zip(ids, _shuffled(examples), strict=True)}
    return {key: asdict(example) for key, example in by_order.items()}


def _shuffled(examples):
    import random

    order = list(examples)
    random.Random(21).shuffle(order)
    return order


def to_record(family: str, example: dict, result: dict, output_key: str = "model_output") -> dict:
    record = {"info": {}, "subset": "", "output": result.get(output_key, "")} | example
    options = {"tally-qa": "ABCDEFGHIJKLMNOP", "ai2d": "ABCD", "vsr": ("True", "False"), "pope": ("Yes", "No")}.get(
        family
    )
    for key in ("mc_probabilities", "true_false_probabilities", "yes_no_probabilities"):
        if key in result:
            record["probabilities"] = result[key]
            truth = result["ground_truth_answer"]
            index = truth if key[0] == "m" else 1 - truth if key[0] == "t" else ("yes", "no").index(truth)
            record["answer"] = options[index]
    if "ground_truth_bbox" in result:
        record["answer"] = result["ground_truth_bbox"]
    return record


def as_ours(family: str, metric: str) -> str:
    """Our name of a reference's metric."""
    name = metric.removeprefix("accuracy__")
    for prefix in ("POPE-", "VSR-", "AI2D-", "TallyQA-", "OCIDRef-", "VizWiz-", "TextVQA-"):
        name = name.removeprefix(prefix)
    if family == "vizwiz":
        return {
            "Overall": "accuracy",
            "Answerable": "accuracy/answerable/1",
            "Unanswerable": "accuracy/answerable/0",
            "Unanswerable-AvgPR": "unanswerable_average_precision",
            "Unanswerable-F1": "unanswerable_f1",
        }[name]
    kinds = {"AUCROC": "roc_auc", "AUCPR": "average_precision", "Accuracy": "accuracy", "ExactMatch": "accuracy"}
    kinds |= {"auc-roc": "roc_auc", "auc-pr": "average_precision"}
    subset, _, kind = name.rpartition("-") if name not in kinds else ("", "", name)
    if kind in kinds:
        overall = "mean_accuracy" if (family, kind) == ("pope", "Accuracy") else kinds[kind]
        return overall if subset in ("", "final") else f"{kinds[kind]}/{subset}"
    return "accuracy" if name in ("accuracy", "All", "OCR", "Pure") else f"accuracy/{name}"


@requires_golden
@pytest.mark.parametrize("path", scoring_cases())
def test_metrics_equal_the_reference(path):
    family = path.split("/")[0]
    case = load_json(f"C_vlmeval/scoring/{path}")
    task = get_task(TASKS[family])
    examples = case_examples(family, case)
    metrics = case.get("metrics", case.get("error"))

    def scores(output_key="model_output"):
        records = [to_record(family, examples[key], row, output_key) for key, row in case["results"].items()]
        return task.scorer.summarise(judged(task, records))

    if isinstance(metrics, str):  # it raised: what it could not divide by, or rank, is absent or None here
        ours = scores()
        assert 0 <= ours["accuracy"] <= 1
        if "ZeroDivision" in metrics:
            subsets = {"refcoco": ("RefCOCO", "RefCOCO+", "RefCOCOg"), "ocid-ref": ("Minimum", "Medium", "Maximum")}
            assert any(ours.get(f"accuracy/{subset}") is None for subset in subsets[family])
        else:
            assert any(value is None for name, value in ours.items() if name.startswith("roc_auc")), ours
        return
    compared = 0
    for name, expected in metrics.items():
        if family == "text-vqa":
            ours = scores("model_output_ocr" if name.endswith("OCR") else "model_output_no_ocr")
        else:
            ours = scores()
        for group, value in expected.items() if isinstance(expected, dict) else [("", expected)]:
            key = (
                as_ours(family, name)
                if not group
                else f"accuracy/{name.removeprefix('accuracy-by-').replace('-', '_')}/{group}"
            )
            percent = family in ("vqa-v2", "gqa", "vizwiz")  # there the reference gives percent, rounded
            got = round(100 * ours[key], 2) if percent else ours[key]
            assert got == pytest.approx(value, abs=1e-9), (name, group)
            compared += 1
    assert compared
