"""Questions that count together are scored, drawn and left out together; and what an answer in words names."""

from dataclasses import replace

import pytest
from spatial_files import WRITERS
from test_spatial_tasks import answered, examples_of

from eval.data.selection import load_examples
from eval.scoring.bootstrap import bootstrap_interval, intervals, resample
from eval.scoring.naming import find_choice
from eval.tasks import get_task


@pytest.fixture
def root(tmp_path):
    """Files of two benchmarks with groups."""
    WRITERS["mmvp"](tmp_path), WRITERS["3dsrbench"](tmp_path)
    return tmp_path


def test_an_error_counts_as_wrong_and_its_group_with_it(root):
    task, examples = examples_of("mmvp", root)
    records = [answered(task, example, example.answer) for example in examples]
    failed = examples[0].record() | {"output": "", "options": ["yes", "no"], "probabilities": None, "error": "x"}
    records[0] = failed | task.scorer.judge(failed)
    assert task.scorer.summarise(records) == {"accuracy": 3 / 4, "pair_accuracy": 1 / 2}
    assert task.scorer.summarise([])["pair_accuracy"] is None


def test_intervals_draw_groups(root):
    """Pairs are drawn whole: the interval is that of a bootstrap over pairs of their own scores."""
    task, (example, *_) = examples_of("mmvp", root)
    records = []
    for number in range(60):
        one = replace(
            example, id=str(number), image=f"mmvp/{number // 2:03d}-{number % 2}.jpg",
            info=example.info | {"pair": str(number // 2)},
        )  # fmt: skip
        records.append(answered(task, one, example.answer if number % 7 else "B"))
    metrics = task.scorer.summarise(records)
    found = intervals(records, metrics, task.scorer.main)
    pairs = [min(records[2 * n]["score"], records[2 * n + 1]["score"]) for n in range(30)]
    assert metrics["pair_accuracy"] == sum(pairs) / 30
    assert found["pair_accuracy"] == pytest.approx(bootstrap_interval(pairs, list(range(100, 130))))
    scores = [record["score"] for record in records]
    assert found["accuracy"] == pytest.approx(bootstrap_interval(scores, [100 + n // 2 for n in range(60)]))
    assert found["accuracy"] != pytest.approx(bootstrap_interval(scores, list(range(100, 160))))


def test_questions_with_a_common_image_are_drawn_together():
    """Of three questions the second shares an image with both others: there is one unit, and no interval."""
    sets = [("a", []), ("b", ["a"]), ("b", ["c"])]
    records = [{"image": i, "more_images": m, "subset": "", "score": float(n)} for n, (i, m) in enumerate(sets)]
    (drawn,) = resample([records])
    assert drawn["accuracy"][0] == 1 and not (drawn["accuracy"][1] == drawn["accuracy"][1]).any()


def test_limits_take_whole_groups(root):
    for limit, sizes in ((3, 2), (4, 4), (1, 2)):
        kept = load_examples(get_task("mmvp"), root, limit=limit, allow_partial=True)
        assert len(kept) == sizes and len({e.info["pair"] for e in kept}) == sizes // 2
    kept = load_examples(get_task("3dsrbench"), root, limit=5, allow_partial=True)
    groups = {}
    for example in examples_of("3dsrbench", root)[1]:
        groups.setdefault(example.info["flip_circular"], set()).add(example.id)
    assert len(kept) == 4 and {e.id for e in kept} in groups.values()
    with pytest.raises(ValueError, match="all: expected 300, got 4"):
        load_examples(get_task("mmvp"), root)


def test_pairs_that_lost_a_row_are_whole_all_the_same(root):
    """What is not in the files cannot be asked; the number of rows is checked, not that of groups."""
    path = root / "mmvp/Questions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="expected 300, got 3"):
        load_examples(get_task("mmvp"), root)
    assert len(load_examples(get_task("mmvp"), root, allow_partial=True)) == 3


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", 0), ("b", 1), ("(B)", 1), ("B.", 1), ("**B**", 1), ("The answer is B.", 1), ("Answer: b", 1),
        ("The answer is (A) left of the dog", 0), ("It is left of the dog", 0), ("LEFT OF THE DOG.", 0),
        ("A. left of the dog", 0), ("I think B", 1), ("A cat, B", 1), ("B: right of the dog", 1), ("C", 2),
        ("Of (A), I am not sure, but the answer is (C).", 2), ("A dog is there", None), ("A or B", None), ("", None),
        ("D", None), ("(D)", None), ("None", None), ("right", None), ("The answer is not clear", None),
        ("x" * 20000, None),
        ("left of the dog or right of the dog", None), ("It's C'est B'ah", None),
    ],
)  # fmt: skip
def test_what_an_answer_names(text, choice):
    assert find_choice(text, ["left of the dog", "right of the dog", "behind (it)."]) == choice


def test_numbers_are_words_of_their_own():
    assert find_choice("There are 14.", ["1", "4", "14"]) == 2 and find_choice("12", ["1", "2"]) is None
