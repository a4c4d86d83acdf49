"""Answer normalisation against the reference's, on every recorded text."""

import json

import pytest
from golden_cases import load_json, requires_golden, requires_samples, samples_dir
from hypothesis import given
from hypothesis import strategies as st

from eval.scoring import normalise

NORMALISERS = {
    "vqav2_process_punctuation": normalise.strip_punctuation,
    "vqav2_prediction": normalise.vqav2_prediction,
    "vizwiz_prediction": normalise.vizwiz_prediction,
    "textvqa_answer_processor": normalise.textvqa_answer,
    "gqa_prediction": normalise.gqa_prediction,
}


@requires_golden
@pytest.mark.parametrize("name", NORMALISERS)
def test_equals_the_reference(name):
    rows = load_json("C_vlmeval/answer_normalisation.json")
    assert set(rows[0]) - {"text"} == set(NORMALISERS)
    wrong = [
        (r["text"], NORMALISERS[name](r["text"]), r[name]) for r in rows if NORMALISERS[name](r["text"]) != r[name]
    ]
    assert not wrong


@requires_samples
def test_equals_a_genuine_submission():
    """LLaVA's VizWiz submission holds its outputs normalised by TextVQA's rules."""
    folder = samples_dir() / "vizwiz" / "llava15_13b"
    said = [json.loads(line)["text"] for line in (folder / "answers.jsonl").read_text().splitlines()]
    submitted = [row["answer"] for row in json.loads((folder / "answers_upload.json").read_text())]
    assert len(said) >= len(submitted) > 50
    assert [normalise.textvqa_answer(text) for text in said[: len(submitted)]] == submitted


@given(st.text())
def test_any_text_is_taken(text):
    for normaliser in NORMALISERS.values():
        assert isinstance(normaliser(text), str)
