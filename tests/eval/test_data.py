"""What is wrong with data is said clearly; limits and slim variants are seeded."""

import json
from pathlib import Path

import pytest

from eval.data.selection import load_examples, majority_share, seeded_order
from eval.tasks import get_task, list_tasks


def tally(root: Path, content) -> Path:
    (root / "tallyqa" / "VG_100K").mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "tallyqa" / "test.json").write_text(text)
    return root


def question(id: int, **fields) -> dict:
    row = {
        "question_id": id,
        "question": "How many?",
        "answer": 2,
        "issimple": id % 2 == 0,
        "image": f"VG_100K/{id}.jpg",
    }
    return row | fields


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "test.json is not as expected"),
        ("\x00\x01", "expected a list of questions with question_id"),
        ([question(1, answer=16)], "16, expected 0 to 15"),
        ([{"question": "How many?"}], "no 'answer'"),
        ([1, 2], "prepare tallyqa"),
        ({"a": 1}, "prepare tallyqa"),
        ([], "no examples"),
        ([question(1), question(1)], "'1'"),
        ([question(1)], r"simple: expected 22,991, got 0; complex: expected 15,598, got 1.*--allow_partial"),
    ],
)
def test_bad_data_is_named(content, said, tmp_path):
    task = get_task("tallyqa")
    with pytest.raises(ValueError, match=said):
        load_examples(task, tally(tmp_path, content))


def test_missing_files_are_named(tmp_path):
    for task in list_tasks():
        with pytest.raises(ValueError, match=rf"python -m eval prepare \S+ --data_root {tmp_path}"):
            task.read(tmp_path, task.split)


def test_missing_images_are_listed(tmp_path):
    tally(tmp_path, [question(i) for i in range(30)] + [question(30, image="VG_100K/3.jpg")])
    (tmp_path / "tallyqa" / "VG_100K" / "3.jpg").touch()
    with pytest.raises(ValueError) as error:
        load_examples(get_task("tallyqa"), tmp_path, allow_partial=True)
    lines = str(error.value).split("\n")
    assert "29 of 30 images" in lines[0] and "prepare tallyqa" in lines[0]
    assert [Path(line).name for line in lines[1:-1]] == [f"{i}.jpg" for i in range(11) if i != 3]
    assert "19 more" in lines[-1]


def test_limit_and_slim_are_seeded(tmp_path):
    tally(tmp_path, [question(i) for i in range(3000)])
    for i in range(3000):
        (tmp_path / "tallyqa" / "VG_100K" / f"{i}.jpg").touch()
    task = get_task("tallyqa")
    everything = load_examples(task, tmp_path, allow_partial=True)
    some = load_examples(task, tmp_path, limit=50, allow_partial=True)
    assert some == seeded_order(everything)[:50] and {e.subset for e in some} == {"simple", "complex"}
    slim = load_examples(task, tmp_path, slim=True, allow_partial=True)
    assert len(slim) == 2048 and sum(e.subset == "simple" for e in slim) == 1024
    assert load_examples(task, tmp_path, slim=True, limit=5, allow_partial=True) == slim[:5]
    assert majority_share(everything) == 1.0
