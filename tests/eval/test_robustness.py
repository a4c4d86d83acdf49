"""What answers depend on that they should not: computed by hand, and of a real evaluation."""

import json
import sys

import forked
import pytest

from eval.__main__ import main
from eval.data.converses import CONVERSES, converse
from eval.report.robustness import robustness, robustness_tables
from eval.runner import data_root
from eval.scoring.bootstrap import bootstrap_interval
from eval.tasks import get_task


class Evaluated:
    """A run of records that are given."""

    main = "accuracy"

    def __init__(self, **records):
        self.tasks = {key: {"main": self.main} for key in records}
        self.records = {key: its for key, its in records.items()}.__getitem__


def record(number, score, answer="True", choice=None, image=None, options=("True", "False"), **info):
    made = {"id": str(number), "image": image or f"{number}.png", "subset": "", "answer": answer, "score": score}
    return made | {"info": info, "choice": choice, "options": list(options)}


@pytest.mark.parametrize(
    ("said", "relation", "turned"),
    [
        ("The cat is at the left side of the dog.", "at the left side of", "The dog is at the right side of the cat."),
        ("The bus contains the cat.", "contains", "The cat is inside the bus."),
        ("The cat is inside the bus.", "inside", "The bus contains the cat."),
        ("The dogs are above the old cat.", "above", None),
        ("The person is inside the cars.", "inside", None),
        ("The truck contains the people.", "contains", None),
        ("The skis is above the glass.", "above", None),
        ("The glass is above the bus.", "above", "The bus is below the glass."),
        ("The cat is on top of the table.", "on top of", None),
        ("The table is beneath the cat.", "beneath", None),
        ("The cup is touching the vase", "touching", "The vase is touching the cup"),
        ("The car is behind the cat.", "behind", None),
        ("A cat above the dog.", "above", None),
        ("The cat contains is the dog.", "contains", None),
    ],
)
def test_statements_the_other_way_round(said, relation, turned):
    assert converse(said, relation) == turned
    if turned:
        assert converse(turned, CONVERSES[relation]) == said


def test_every_relation_has_its_converse_back():
    assert all(CONVERSES[CONVERSES[relation]] == relation for relation in CONVERSES)


def test_kinds_share_a_row_when_they_are_rare():
    its = [record(i, i % 2, relation="above") for i in range(6)] + [
        record(9, 1, relation="on"),
        record(8, 0, relation="in"),
    ]
    rows = robustness(Evaluated(vsr=its))["kinds"]
    assert [(r["of"], r["questions"], r["score"]) for r in rows] == [("above", 6, 0.5), ("2 rarer ones", 2, 0.5)]
    low, high = rows[0]["interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_kinds_of_questions_that_count_together_are_scored_in_groups():
    """Five pairs of a kind, one of which has a wrong answer: four of five are right, not nine of ten."""
    its = [record(i, float(i > 0), category="near") | {"groups": {"circular": str(i // 2)}} for i in range(10)]
    run = Evaluated(mine=its)
    (row,) = robustness(run)["kinds"]
    assert (row["questions"], row["score"]) == (10, 0.9), "where single questions stand for the task"
    run.tasks["mine"]["main"] = "circular_accuracy"
    (row,) = robustness(run)["kinds"]
    assert (row["questions"], row["score"]) == (5, 0.8)
    assert row["interval"] == list(bootstrap_interval([0.0, 1, 1, 1, 1], list(range(5))))


def test_sizes_are_thirds_of_the_true_boxes():
    sides = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    its = [record(i, float(s > 0.25), answer=[0.1, 0.1, 0.1 + s, 0.1 + s], options=()) for i, s in enumerate(sides)]
    rows = robustness(Evaluated(refcoco=its))["sizes"]
    assert [(r["of"].split(" (")[0], r["questions"], r["score"]) for r in rows] == [
        ("small third", 2, 0.0), ("middle third", 2, 1.0), ("large third", 2, 1.0)
    ]  # fmt: skip
    assert "(0.50 to 0.60 of the image)" in rows[2]["of"]


def test_bias_is_what_would_have_to_change():
    said, right = "TTTTF", "TTFFF"
    words = {"T": "True", "F": "False"}
    its = [record(i, float(s == r), words[r], words[s]) for i, (s, r) in enumerate(zip(said, right, strict=True))]
    bias = robustness(Evaluated(vsr=its))["options"]["vsr"]
    assert bias["said"] == {"True": 0.8, "False": 0.2} and bias["right"] == {"True": 0.4, "False": 0.6}
    assert bias["bias"] == pytest.approx(0.4)
    its[0]["options"] = ["A", "B"]
    assert not robustness(Evaluated(vsr=its))["options"]


def test_swapped_statements_are_held_to_their_originals_by_id():
    plain = [record(i, s, choice=c) for i, (s, c) in enumerate([(1, "True"), (0, "False"), (1, "True"), (1, "True")])]
    turned = [record(3, 1, choice="True"), record(1, 1, choice="True"), record(2, 0, choice=None)]
    (row,) = robustness(Evaluated(**{"vsr": plain, "vsr+swapped": turned}))["swapped"].values()
    assert (row["pairs"], row["same"], row["both_right"]) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_swapped_statements_of_drawn_scenes_keep_their_truth(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = data_root("miniature:12")
    plain = {e.id: e for e in get_task("vsr").read(root, "test")}
    turned = get_task("vsr+swapped").read(root, "test")
    assert len(turned) == len(plain) > 10
    for example in turned:
        one = plain[example.id]
        assert example.answer == one.answer and example.question != one.question
        words, back = (set(text.rstrip(".").lower().split()) for text in (one.question, example.question))
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
        (word,) = words & set(opposite)
        assert back & set(opposite) == {opposite[word]} and words - set(opposite) - {"to"} == back - set(opposite) - {
            "to"
        }


@pytest.mark.slow
def test_of_a_real_evaluation(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    settings = ["--model", "miniature", "--tasks", "vsr,vsr+swapped,refcoco", "--data_root", "miniature:6"]
    settings += ["--allow_partial", "true", "--precision", "fp32", "--out", str(out)]
    done = forked.run(["-m", "recipes.evaluate", *settings])
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(sys, "argv", ["eval", "robustness", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert not ended.value.code and "same answer swapped" in shown and "size of the true box" in shown
    found = json.loads((out / "robustness.json").read_text())
    pairs = found["swapped"]["vsr"]
    samples = {k: [json.loads(line) for line in (out / k / "samples.jsonl").open()] for k in ("vsr", "vsr+swapped")}
    same = [a["choice"] == b["choice"] for a, b in zip(samples["vsr"], samples["vsr+swapped"], strict=True)]
    assert pairs["same"] == pytest.approx(sum(same) / len(same)) and pairs["pairs"] == len(same)
    assert robustness_tables(found) in shown


def test_an_evaluation_without_any_of_it_says_so():
    its = [record(0, 1, answer=["a", "b"], options=())]
    assert "nothing to tell" in robustness_tables(robustness(Evaluated(vqav2=its)))
