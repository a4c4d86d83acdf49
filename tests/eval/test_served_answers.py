"""What is read out of a served model's answers: thoughts, cut-off texts, options without probabilities, refusals."""

import json

import pytest
from planned_servers import between, engine_for, says
from spatial_files import WRITERS

from eval import endpoint_client
from eval.endpoint import UNANSWERED, asking_again, check_readable
from eval.engine import Question
from eval.records import stored
from eval.runner import read_jobs
from eval.task import Choose, Generate
from eval.tasks import get_task
from recipes.config.evaluate import parse_evaluate
from recipes.evaluate import main

LETTERS = Question(0, "Which?", Choose(("A", "B")))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint_client, "PAUSE", 0.005)
    monkeypatch.setattr("eval.evaluation.write_report", lambda *args: None)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, {"error": {"message": "You are not allowed to request logprobs from this model", "param": None}}),
        (
            400,
            {"error": {"code": 400, "message": "Logprobs is not enabled for models/x", "status": "INVALID_ARGUMENT"}},
        ),
        (400, [{"error": {"message": 'Invalid JSON payload received. Unknown name "logprobs"'}}]),
        (400, {"error": {"message": "no parameters: ['logprobs']", "type": "None", "param": "None", "code": "400"}}),
    ],
)
def test_a_server_that_gives_no_probabilities_is_asked_without(status, error):
    """Whatever it says this with; and what it takes not is named."""
    told = []
    with between(lambda number, body: (status, {}, error) if "logprobs" in body else says("B")) as server:
        answers = engine_for(server, concurrency=1, say=told.append).answer([[]], [LETTERS] * 3)
    assert [answer.text for answer in answers] == ["B"] * 3 and len(server.seen) == 4
    assert len(told) == 1 and "takes no logprobs: options are read from the text" in told[0]


def test_parameters_that_only_the_message_names():
    told = []

    def plan(number, body):
        for name in ("temperature", "max_tokens"):
            if name in body:
                message = f"UnsupportedParamsError: it does not support parameters: ['{name}']"
                return 400, {}, {"error": {"message": message, "type": "None", "param": "None", "code": "400"}}
        return says(str(body["max_completion_tokens"]))

    with between(plan) as server:
        (answer,) = engine_for(server, say=told.append).answer([[]], [Question(0, "What?", Generate(7))])
    assert answer.text == "7" and len(server.seen) == 3
    assert len(told) == 1 and "takes no temperature: answers are drawn" in told[0]


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("<think>A or B? B.</think>\n\nA", "stop", "A"),
        ("It may be A, or B.\n</think>B", "stop", "B"),  # the prompt ended with <think>
        ("<think>1</think><think>2</think> B", "stop", "B"),
        ("<think>Let me compare A and B", "length", None),
        ("<think>Let me compare A and B</think>", "length", None),
        ("B, because", "length", "B, because"),
        ("I think <b>A</b>", "stop", "I think <b>A</b>"),
    ],
)
def test_thoughts_are_no_answers(text, reason, said):
    with between(lambda number, body: says(text, reason=reason)) as server:
        (answer,) = engine_for(server).answer([[]], [Question(0, "What?", Generate(7))])
    assert answer.finish_reason == reason and (answer.text or None) == said
    assert bool(answer.error) == (said is None) and (said or "(it ended by 'length'): a higher --max" in answer.error)


def served(root, out, server, tasks, *more):
    arguments = ["--tasks", tasks, "--data_root", str(root), "--allow_partial", "true", "--out", str(out)]
    model = f"openai:http://127.0.0.1:{server.server_port}/v1"
    return main(parse_evaluate(["--model", model, "--name", "m", *arguments, "--max_error_share", "1", *more]))["tasks"]


def test_limits_of_tokens_are_replaced_recorded_and_counted(tmp_path):
    """Answers of another limit are other answers."""
    WRITERS["mmvp"](tmp_path / "data")

    def plan(number, body):
        if body["max_tokens"] < 2000:
            return says("<think>yes or no", reason="length") if number % 2 else says("yes, it", reason="length")
        return says("<think>no</think>yes")

    with between(plan) as server:
        task = served(tmp_path / "data", tmp_path / "out", server, "mmvp", "--concurrency", "1")["mmvp"]
        assert {body["max_tokens"] for _, body, *_ in server.seen} == {64} and len(server.seen) == 4
        assert task["truncated"] == 4 and task["errors"] == 2
        lines = (tmp_path / "out/mmvp/samples.jsonl").read_text().splitlines()
        assert {json.loads(line)["finish_reason"] for line in lines} == {"length"}
        more = served(tmp_path / "data", tmp_path / "out", server, "mmvp", "--max_tokens", "2048")["mmvp"]
        assert {body["max_tokens"] for _, body, *_ in server.seen[4:]} == {2048} and len(server.seen) == 8
    assert more["truncated"] == more["errors"] == 0 and more["fingerprint"] != task["fingerprint"]


def test_options_that_a_prompt_does_not_show_are_refused_before_anything_is_asked(tmp_path):
    for name in ("vstar", "seed-bench-spatial", "whatsup", "mmvp", "cv-bench"):
        WRITERS[name](tmp_path / "data")
    with between(lambda number, body: says("B")) as server:
        for name in ("vstar", "seed-bench-spatial", "whatsup"):
            with pytest.raises(ValueError, match=rf"{name} compares .*: evaluate {name}\+llava or {name}\+text"):
                served(tmp_path / "data", tmp_path / "out", server, f"mmvp,{name}")
        assert not server.seen
    shown = ["mmvp", "cv-bench", "vstar+llava", "vstar+text", "seed-bench-spatial+text", "whatsup+llava"]
    for job in read_jobs(shown, tmp_path / "data", allow_partial=True):
        check_readable(job)


def test_options_that_were_read_from_texts_may_name_none(tmp_path):
    WRITERS["cv-bench"](tmp_path / "data")
    told = {"error": {"message": "no logprobs"}}
    plan = lambda number, body: (400, {}, told) if "logprobs" in body else says("I cannot tell")  # noqa: E731
    with between(plan) as server:
        task = served(tmp_path / "data", tmp_path / "out", server, "cv-bench")["cv-bench"]
    assert task["metrics"]["parse_failures"] == 1 and task["choices"] == {"by_probabilities": 0, "by_text": 6}
    scorer, info = get_task("cv-bench").scorer, {"choices": ["a", "b"]}
    record = {"answer": "A", "subset": "", "info": info, "options": ["A", "B"], "output": "", "probabilities": None}
    records = [record | {"output": "?"}, record | {"output": "A"}, record | {"probabilities": [0.9, 0.1]}]
    records = [one | scorer.judge(one) for one in (*records, record | {"error": "x"})]
    assert scorer.summarise(records)["parse_failures"] == 1 / 2, "of the two that were read from texts"


def test_what_was_finished_stays_where_asking_again_fails(tmp_path):
    """As when the server stops answering: samples are whole again, and what was answered meanwhile is kept."""
    lines = [{"id": str(n), "output": "x", "answer": "y", "fingerprint": "f"} for n in range(3)]
    lines[1] |= {"error": f"{UNANSWERED}: it answered 500", "output": ""}
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = file.read_bytes()
    with pytest.raises(ConnectionError), asking_again(tmp_path, None, "f"):
        assert [*stored(tmp_path, "f")] == ["0", "2"]
        raise ConnectionError
    assert file.read_bytes() == whole and [*tmp_path.iterdir()] == [file]


def test_limits_are_of_served_models(capsys):
    with pytest.raises(SystemExit):
        parse_evaluate(["--model", "miniature", "--tasks", "vsr", "--data_root", "d", "--max_tokens", "9"])
    assert "--max_tokens is for a server's model" in capsys.readouterr().err
