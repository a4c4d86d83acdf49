"""Scores of genuine outputs, of LLaVA-1.5-13B and others, against what is published of them."""

import json
from dataclasses import asdict

import pytest
from golden_cases import requires_samples, samples_dir

from eval.tasks import get_task


def said(path: str) -> list[str]:
    return [json.loads(line)["text"] for line in (samples_dir() / path).read_text().splitlines()]


def scored(name: str, outputs: dict[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores by id, and metrics, of genuine outputs by example id."""
    task = get_task(name)
    examples = [e for e in task.read(samples_dir(), task.split) if e.id in outputs]
    assert len(examples) == len(outputs)
    records = [asdict(e) | {"output": outputs[e.id]} for e in examples]
    records = [record | task.scorer.judge(record) for record in records]
    return {r["id"]: r["score"] for r in records}, task.scorer.summarise(records)


@requires_samples
def test_llava_on_pope():
    examples = get_task("pope").read(samples_dir(), "test")
    outputs = said("pope/llava15_13b/answers.jsonl")  # in the order adversarial, popular, random
    _, metrics = scored("pope", {e.id: text for e, text in zip(examples, outputs, strict=True)})
    expected = json.loads((samples_dir() / "pope/llava15_13b/expected_metrics.json").read_text())["excerpt"]
    for subset, values in expected.items():
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            assert metrics[f"{name}/{subset}"] == pytest.approx(values[name], abs=1e-9)
    mean = sum(values["accuracy"] for values in expected.values()) / 3
    assert metrics["mean_accuracy"] == pytest.approx(mean, abs=1e-9)
    assert metrics["roc_auc"] is None  # there are no probabilities


@requires_samples
def test_outputs_on_textvqa():
    examples = get_task("textvqa-ocr").read(samples_dir(), "val")
    rows = json.loads((samples_dir() / "textvqa/third_party_scores.json").read_text())
    for name in ("textvqa", "textvqa-ocr"):
        scores, _ = scored(name, {examples[row["row"]].id: row["pred_answer"] for row in rows})
        assert [scores[examples[row["row"]].id] for row in rows] == pytest.approx([r["score"] for r in rows], abs=1e-9)
    outputs = said("textvqa/llava15_13b/answers.jsonl")
    expected = json.loads((samples_dir() / "textvqa/llava15_13b/expected_first30.json").read_text())
    _, metrics = scored("textvqa-ocr", {e.id: text for e, text in zip(examples, outputs[: expected["n"]], strict=True)})
    assert metrics["accuracy"] == pytest.approx(expected["mean_soft_accuracy"], abs=1e-9)


@requires_samples
def test_official_result_files():
    rows = json.loads((samples_dir() / "vqav2/fake_results.json").read_text())
    expected = json.loads((samples_dir() / "vqav2/fake_results_expected.json").read_text())
    scores, metrics = scored("vqav2", {str(row["question_id"]): row["answer"] for row in rows})
    percent = {id: 100 * score for id, score in scores.items()}
    assert percent == pytest.approx(expected["per_question_percent"], abs=1e-9)
    assert 100 * metrics["accuracy"] == pytest.approx(expected["overall_percent"], abs=1e-9)

    rows = json.loads((samples_dir() / "gqa/predictions_example.json").read_text())
    _, metrics = scored("gqa", {row["questionId"]: row["prediction"] for row in rows})
    assert metrics["accuracy"] == 3 / 4  # as the manifest of the samples says

    examples = {e.image.split("/")[-1]: e.id for e in get_task("vizwiz").read(samples_dir(), "val")}
    rows = json.loads((samples_dir() / "vizwiz/example_predictions.json").read_text())
    _, metrics = scored("vizwiz", {examples[row["image"]]: row["answer"] for row in rows})
    assert metrics["accuracy"] == 1  # as the manifest of the samples says
