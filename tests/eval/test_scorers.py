"""Scores against what the reference's scorers gave; bad records and lenient boxes."""

import json
import random
from dataclasses import asdict

import pytest
from golden_cases import golden_dir, load_json, requires_golden

from eval.data.reference_metadata import read_prepared
from eval.tasks import get_task

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
    keys = ("model_output_ocr", "model_output_no_ocr") if family == "text-vqa" else ("model_output",)
    all_scores, compared = {key: scores(key) for key in keys}, 0
    for name, expected in metrics.items():
        ours = all_scores[keys[-1] if name.endswith("Pure") else keys[0]]
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


def made_up(name: str, count: int = 12) -> list[dict]:
    """Records of a task with a right output each."""
    task = get_task(name)
    subsets = list(task.num_examples[task.split])
    records = []
    for i in range(count):
        record = {"id": str(i), "image": "", "question": "q", "subset": subsets[i % len(subsets)]}
        record["info"] = {"width": 640, "height": 480, "answerable": i % 3 != 0, "choices": ["w", "x", "y", "z"]}
        if name in ("refcoco", "ocid-ref"):
            record |= {"answer": [0.1, 0.2, 0.6, 0.7], "output": "[0.1, 0.2, 0.6, 0.7]"}
        elif options := getattr(task.answer(None), "options", None):
            truth = i // len(subsets) % len(options)
            likely = [0.9 if k == truth else 0.1 / (len(options) - 1) for k in range(len(options))]
            record |= {"answer": options[truth], "output": options[truth], "probabilities": likely}
        elif name == "gqa":
            record |= {"answer": "red", "output": "Red."}
        else:
            word = "red" if record["info"]["answerable"] else "unanswerable"
            record |= {"answer": [word] * 10, "output": word}
        records.append(record)
    return records


NAMES = [*TASKS.values(), "textvqa-ocr", "ai2d-abc"]


@pytest.mark.parametrize("name", NAMES)
def test_right_outputs_score_one(name):
    task = get_task(name)
    metrics = task.scorer.summarise(judged(task, made_up(name, 96)))
    assert metrics[task.scorer.main] == pytest.approx(1)
    for metric, best in (("roc_auc", 1), ("average_precision", 1), ("rmse", 0), ("unanswerable_f1", 1)):
        assert metrics.get(metric, best) == pytest.approx(best)
    json.dumps(metrics)


@pytest.mark.parametrize("name", NAMES)
def test_an_error_counts_as_wrong(name):
    task, records = get_task(name), made_up(name, 96)
    kept = {"id", "image", "question", "answer", "subset", "info"}
    for bad in (
        lambda r: {"error": "cannot read the image", "output": ""},
        lambda r: {"error": "x", "output": r["output"]},
    ):
        some = [{k: r[k] for k in kept} | bad(r) if i % 4 == 0 else r for i, r in enumerate(records)]
        some = judged(task, some)
        assert [r["score"] for r in some] == pytest.approx([float(i % 4 != 0) for i in range(96)])
        metrics = task.scorer.summarise(some)
        assert metrics["accuracy"] == pytest.approx(0.75)
        for metric in ("roc_auc", "average_precision", "precision", "recall", "unanswerable_f1"):
            assert metric not in metrics or 0 < metrics[metric] < 1, metric
        every = judged(task, [{k: r[k] for k in kept} | bad(r) for r in records])
        assert task.scorer.summarise(every)[task.scorer.main] == 0
    assert task.scorer.summarise([])[task.scorer.main] is None


@pytest.mark.parametrize("probabilities", [None, [], [0.5], [float("nan")] * 4, [0.0] * 4, [float("inf"), 0, 0, 0]])
def test_unusable_probabilities_leave_the_text(probabilities):
    task = get_task("ai2d")
    record = {"answer": "B", "subset": "", "info": {}, "probabilities": probabilities}
    assert task.scorer.judge(record | {"output": "B. a dog"})["score"] == 1
    assert task.scorer.judge(record | {"output": "a dog"}) == {"score": 0.0, "choice": None}
    judge = judged(task, [record | {"output": "B", "answer": letter} for letter in "ABCD"])
    assert task.scorer.summarise(judge)["roc_auc"] is None


def test_counting_error():
    task = get_task("tallyqa")
    records = [
        {"answer": "C", "output": "E", "subset": "simple", "info": {}},  # 2, not 4
        {"answer": "C", "output": "C", "subset": "simple", "info": {}},
        {"answer": "D", "output": "", "error": "x", "subset": "complex", "info": {}},  # 3: 12 off at worst
    ]
    metrics = task.scorer.summarise(judged(task, records))
    assert metrics["rmse/simple"] == pytest.approx((4 / 2) ** 0.5)
    assert metrics["rmse"] == pytest.approx(((4 + 0 + 144) / 3) ** 0.5)


def test_f1_is_0_where_no_yes_is_right():
    task = get_task("pope")
    records = [{"answer": truth, "output": said, "subset": "random", "info": {}}
               for truth, said in (("Yes", "No"), ("No", "Yes"), ("No", "No"))]  # fmt: skip
    metrics = task.scorer.summarise(judged(task, records))
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0, 0, 0)


@pytest.mark.parametrize("frame", ["image", "padded-square"])
@pytest.mark.parametrize("scale", ["1", "100", "1000", "pixels"])
def test_lenient_boxes_on_any_scale(frame, scale):
    """Outputs in words, on each scale and in both frames, against a box in the image; strictly, none counts."""
    task, records = get_task("refcoco"), []
    for i in range(8):
        width, height = (640, 480) if i % 2 else (480, 640)
        x1, y1, x2, y2 = 48 + 8 * i, 96, 240, 384  # pixels
        left, top = ((640 - width) // 2, (640 - height) // 2) if frame == "padded-square" else (0, 0)
        across, down = (640, 640) if frame == "padded-square" else (width, height)
        pixels = [x1 + left, y1 + top, x2 + left, y2 + top]
        size = (across, down, across, down)
        said = pixels if scale == "pixels" else [v / s * int(scale) for v, s in zip(pixels, size, strict=True)]
        truth = [x1 / width, y1 / height, x2 / width, y2 / height]
        record = {"answer": truth, "subset": "RefCOCO", "info": {"width": width, "height": height}}
        records.append(record | {"output": f"It is at {said}", "box_frame": frame})
    metrics = task.scorer.summarise(judged(task, records))
    assert metrics["accuracy"] == 0 and metrics["parse_failures"] == 1 and metrics["lenient_accuracy"] == 1
    if scale == "1":
        strict = judged(task, [r | {"output": r["output"].removeprefix("It is at ")} for r in records])
        assert [r["iou"] for r in strict] == pytest.approx([1.0] * 8)
        assert [r["box"] for r in strict] == [pytest.approx(r["answer"]) for r in records]


def test_lenient_scale_is_one_for_all():
    """Boxes on two scales: lenient accuracy is that of the better one, and never touches accuracy."""
    task = get_task("refcoco")
    record = {"answer": [0.1, 0.2, 0.6, 0.7], "subset": "", "info": {}}
    outputs = ["[0.1, 0.2, 0.6, 0.7]", "[100, 200, 600, 700]", "box: 100, 200, 600, 700", "nothing"]
    metrics = task.scorer.summarise(judged(task, [record | {"output": text} for text in outputs]))
    assert (metrics["accuracy"], metrics["lenient_accuracy"], metrics["parse_failures"]) == (0.25, 0.5, 0.75)


def test_padded_square_needs_a_size():
    scorer = get_task("refcoco").scorer
    record = {"answer": [0.1, 0.2, 0.6, 0.7], "subset": "", "info": {}, "output": "[0.1, 0.2, 0.6, 0.7]"}
    with pytest.raises(ValueError, match="image's size"):
        scorer.judge(record | {"box_frame": "padded-square"})
    with pytest.raises(ValueError, match="'image' or 'padded-square'"):
        scorer.judge(record | {"box_frame": "letterbox"})
