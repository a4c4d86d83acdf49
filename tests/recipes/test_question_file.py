"""`prismatic chat --questions`: a file of questions, and one of answers."""

import json

import pytest
from talking import QUESTIONS, generated

from eval.streaming import Request
from recipes.chat import main
from recipes.chatting.question_file import read_questions, write_answers
from recipes.config.chat import parse_chat


def rows_of(folder, picture):
    rows = [{"id": n, "image": picture.name, "question": q} for n, q in enumerate(QUESTIONS * 5)]
    rows.append({"messages": [{"role": "user", "content": "Hello"}], "mine": [1]})
    rows.append({"images": [picture.name, picture.name], "question": "Same?"})
    file = folder / "questions.jsonl"
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file, rows


def test_a_file_of_questions(engine, picture, tmp_path):
    file, rows = rows_of(tmp_path, picture)
    brief = Request([], max_new_tokens=30)
    assert write_answers(engine, read_questions(file), tmp_path / "answers.jsonl", brief, "") == 0
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("answer", "finish_reason")} for row in found] == rows
    assert [row["answer"] for row in found[:3]] == [generated(engine, q, picture) for q in QUESTIONS]
    assert [row["answer"] for row in found[3:6]] == [row["answer"] for row in found[:3]]
    with pytest.raises(ValueError, match="answers.jsonl is there already"):
        main(parse_chat(["miniature", "--questions", str(file), "--out", str(tmp_path / "answers.jsonl")]))
    again = read_questions(tmp_path / "answers.jsonl")  # what it added is replaced
    assert write_answers(engine, again, tmp_path / "again.jsonl", brief, "") == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "answers.jsonl").read_text()


def test_a_question_that_fails_does_not_lose_the_others(engine, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"question": "Hi"}, {"question": "x " * 3000}, {"image": "broken.png", "question": "Hi"},
            {"messages": [{"role": "assistant", "content": "?"}]},
            {"question": "H\u2028i", "error": "old"}]  # fmt: skip
    file = tmp_path / "questions.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert write_answers(engine, read_questions(file), tmp_path / "out.jsonl", Request([]), "") == 3
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().split("\n")[:-1]]
    assert ["error" in row for row in found] == [False, True, True, True, False]
    assert found[4]["question"] == "H\u2028i" and found[4]["answer"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Expecting"),
        ("[1]", "line 2: expected an object"),
        ('{"text": "x"}', "line 2: expected a text under question, or messages; found text"),
        ('{"question": "x", "image": 3}', "expected the name of a file under image"),
        ('{"question": "x", "image": "gone.png"}', "line 2: no picture .*gone.png"),
        ("[" * 100_000, "line 2: "),
        ('{"messages": null}', "line 2: expected a list of objects with role and content"),
        ('{"messages": ["x"]}', "line 2: expected a list of objects with role and content"),
    ],
)
def test_malformed_questions_fail_before_any_is_answered(line, said, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(f'{{"question": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=said) as error:
        read_questions(file)
    assert "\n" not in str(error.value)
