"""Requests to a server: how often, how fast, and what comes of them; settings of models behind one."""

import math
import threading
import time

import pytest
from planned_servers import ERROR, between, client, engine_for, says

from eval import endpoint_client
from eval.endpoint import option_probabilities
from eval.endpoint_client import NoAnswer, Pace
from eval.engine import Question
from eval.task import Choose, Generate
from recipes.config.evaluate import parse_evaluate


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint_client, "PAUSE", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_what_asking_again_does_not_mend(status):
    headers = {"Location": "http://127.0.0.1:9/elsewhere"} if status == 307 else {}
    with between(lambda number, body: (status, headers, {"error": "not for you"})) as server:
        with pytest.raises(NoAnswer, match=f"^it answered {status}: not for you$"):
            client(server).complete({})
        assert len(server.seen) == 1


def test_retry_after_is_waited_for_by_all():
    with between(lambda number, body: (429, {"Retry-After": "0.4"}, ERROR) if number == 0 else says("ok")) as server:
        asking = client(server)
        threads = [threading.Thread(target=asking.complete, args=({"n": n},)) for n in range(4)]
        threads[0].start()
        while not server.seen:
            time.sleep(0.005)
        time.sleep(0.05)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        times = [at for at, *_ in server.seen]
    assert len(times) == 5 and min(times[1:]) - times[0] >= 0.38


def test_dates_and_long_waits():
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert endpoint_client._seconds(date) == pytest.approx(100, abs=2)
    assert [endpoint_client._seconds(said) for said in ("3", "-1", "soon", None)] == [3, 0, None, None]
    with between(lambda number, body: (429, {"Retry-After": "3600"}, ERROR)) as server:
        with pytest.raises(NoAnswer, match="come back later; it asks to wait for 3,600 seconds"):
            client(server).complete({})
        assert len(server.seen) == 1


def test_pauses_double(monkeypatch):
    waited = []
    monkeypatch.setattr(Pace, "sleep", lambda self, seconds: waited.append(seconds))
    with between(lambda number, body: (500, {}, ERROR)) as server, pytest.raises(NoAnswer):
        client(server).complete({})
    pauses = [seconds for seconds in waited if seconds > 0.001]
    assert pauses == [pytest.approx(0.005 * 2**n, rel=0.21) for n in range(6)] and len(server.seen) == 7


def test_requests_per_minute():
    with between(lambda number, body: says("ok")) as server:
        engine = engine_for(server, concurrency=8, per_minute=1200)
        engine.answer([[]], [Question(0, "Hello", Generate(4))] * 12)
        times = sorted(at for at, *_ in server.seen)
    assert times[-1] - times[0] >= 11 * 0.05 - 0.03 and len(times) == 12


def test_as_many_at_once_as_allowed():
    running, most, lock = [0], [0], threading.Lock()

    def plan(number, body):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return says(body["messages"][0]["content"][0]["text"])

    with between(plan) as server:
        engine = engine_for(server, concurrency=3)
        answers = engine.answer([[]], [Question(0, str(n), Generate(4)) for n in range(engine.batch_size)])
    assert most[0] == 3 and [answer.text for answer in answers] == [str(n) for n in range(12)]


def top(**tokens):
    return {"content": [{"token": "x", "top_logprobs": [{"token": t, "logprob": p} for t, p in tokens.items()]}]}


def test_choices_by_probabilities_where_all_options_have_one():
    half, letters = math.log(0.5), Choose(("A", "B"))
    given = {
        "both": (top(B=math.log(0.3), A=math.log(0.2), the=half), "B", [0.4, 0.6]),
        "spaced": (top(**{" A": math.log(0.3), "A": math.log(0.2), "B": math.log(0.25)}), "B", [2 / 3, 1 / 3]),
        "one": (top(A=half), "b. the second", None),
        "none": (None, "A", None),
        "odd": ({"content": [{"top_logprobs": [{"token": "A", "logprob": "?"}]}]}, "B", None),
    }
    with between(lambda n, body: says(*given[body["messages"][0]["content"][0]["text"]][1::-1])) as server:
        answers = engine_for(server).answer([[]], [Question(0, prompt, letters) for prompt in given])
    assert [body["top_logprobs"] for _, body, *_ in server.seen] == [20] * len(given), "one request a question"
    for answer, (_, text, probabilities) in zip(answers, given.values(), strict=True):
        assert answer.probabilities == (probabilities and pytest.approx(probabilities))
        assert answer.text == ("AB"[probabilities[1] > 0.5] if probabilities else text)


@pytest.mark.parametrize(
    "logprobs", [{}, {"content": []}, {"content": [{}]}, [], "x", top(A=1e9, B=0), top(A=0, B=-1e9)]
)
def test_probabilities_that_are_none(logprobs):
    assert option_probabilities(logprobs, ("A", "B")) is None


def test_parameters_that_a_server_does_not_take():
    """As newer models of OpenAI refuse them; each is told once, and left out from then on."""

    def plan(number, body):
        for name in ("temperature", "max_tokens", "logprobs"):
            if name in body:
                code = "unsupported_value" if name == "temperature" else "unsupported_parameter"
                return 400, {}, {"error": {"message": f"Unsupported: '{name}'", "param": name, "code": code}}
        return says(f"B {body['max_completion_tokens']}")

    told = []
    with between(plan) as server:
        engine = engine_for(server, concurrency=1, say=told.append)
        questions = [Question(0, "Which?", Choose(("A", "B"))), Question(0, "What?", Generate(7))] * 2
        answers = engine.answer([[]], questions)
    assert [answer.text for answer in answers] == ["B 64", "B 7"] * 2 and len(server.seen) == 4 + 3
    assert len(told) == 2 and "takes no temperature: answers are drawn" in told[0]
    assert "takes no logprobs: options are read from the text" in told[1]


def test_answers_without_text():
    plans = [says(None, reason="content_filter"), says("", reason="length"), says("", reason="stop")]
    with between(lambda number, body: plans[number]) as server:
        answers = engine_for(server, concurrency=1).answer([[]], [Question(0, "What?", Generate(7))] * 3)
    assert [answer.error for answer in answers] == [
        "the server's answer has no text (it ended by 'content_filter')",
        "the server's answer has no text (it ended by 'length'): a higher --max_tokens leaves room for it",
        None,
    ]


def test_an_answer_without_end(monkeypatch):
    monkeypatch.setattr(endpoint_client, "LARGEST", 1000)
    monkeypatch.setattr(endpoint_client, "TRIES", 2)
    with between(lambda number, body: says("x" * 5000)) as server, pytest.raises(NoAnswer, match="more than 1,000 b"):
        client(server).complete({})


def test_nothing_listens():
    with between(lambda number, body: None) as server:
        asking = client(server)
    with pytest.raises(NoAnswer, match=r"Connection refused, in the last of 7 tries"):
        asking.complete({})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model", "openai:8000"],
            "'8000' is no base URL of a server: expected one such as http://127.0.0.1:8000/v1",
        ),
        (["--model", "openai:ftp://a/v1", "--name", "m"], "is no base URL of a server"),
        (["--model", "openai:http://a:b@c/v1", "--name", "m"], "put the key into $OPENAI_API_KEY"),
        (["--model", "openai:http://c/v1?key=b", "--name", "m"], "put the key into $OPENAI_API_KEY"),
        (["--model", "openai:http://c/v1"], "no name: give --name the model that the server is to be asked for"),
        (
            ["--model", "openai:http://c/v1", "--name", "m", "--strict", "true"],
            "--strict is for a model that is loaded",
        ),
        (
            ["--model", "openai:http://c/v1", "--name", "m", "--max_pixels", "9"],
            "--max_pixels is for a model that is l",
        ),
        (["--model", "openai:http://c/v1", "--name", "m", "--concurrency", "0"], "--concurrency is 0: expected 1 or m"),
        (["--model", "miniature", "--name", "m"], "--name is for a server's model, --model openai:URL: leave it out"),
        (["--model", "miniature", "--requests_per_minute", "9"], "--requests_per_minute is for a server's model"),
    ],
)
def test_settings_that_make_no_sense(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_evaluate([*arguments, "--tasks", "vsr", "--data_root", "miniature:4"])
    assert end.value.code == 2 and said in capsys.readouterr().err
