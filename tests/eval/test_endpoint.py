"""Models behind a server: answers are those of the engine, and no failure of the server loses or invents one."""

import base64
import http.client
import io
import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from clients.served import served  # noqa: E402

import prismatic  # noqa: E402
from eval import endpoint_client  # noqa: E402
from eval.endpoint import EndpointEngine, option_probabilities  # noqa: E402
from eval.endpoint_client import Client, NoAnswer, Pace, Refused  # noqa: E402
from eval.engine import Question  # noqa: E402
from eval.generate_engine import PlainEngine  # noqa: E402
from eval.report.runs import read_runs  # noqa: E402
from eval.scoring.parsing import parse_choice  # noqa: E402
from eval.streaming import StreamingEngine  # noqa: E402
from eval.task import Choose, Generate  # noqa: E402
from prismatic.miniature.benchmarks import write_benchmarks  # noqa: E402
from prismatic.miniature.scenes import scene  # noqa: E402
from recipes.config.evaluate import parse_evaluate  # noqa: E402
from recipes.evaluate import main  # noqa: E402

TASKS = ["refcoco", "vsr", "tallyqa"]
OURS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("endpoint") / "data"
    write_benchmarks(root, 4)
    return root


@pytest.fixture(scope="module")
def parts():
    return prismatic.load("miniature", dtype=torch.float32)


@pytest.fixture(scope="module")
def port(parts):
    """Of our own server, with the bundled model."""
    engine = StreamingEngine(*parts, batch_size=4)
    with served(engine, requests=64) as port:
        yield port
    engine.close(finish=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint_client, "PAUSE", 0.005)
    monkeypatch.setattr("eval.evaluation.write_report", lambda *args: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def evaluate(world, out, *more, model, tasks=TASKS):
    arguments = ["--tasks", ",".join(tasks), "--data_root", str(world), "--allow_partial", "true", "--out", str(out)]
    return main(parse_evaluate(["--model", model, *arguments, *more]))


def through(port, *more):
    return {"model": f"openai:http://127.0.0.1:{port}/v1"}, ("--name", "miniature", *more)


def samples(out, task):
    return [json.loads(line) for line in (Path(out) / task / "samples.jsonl").read_text().splitlines()]


class Proxy(BaseHTTPRequestHandler):
    """Hands requests to our server, or does to them what `server.plan` says: a function of their number and body."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body, server = json.loads(raw), self.server
        with server.lock:
            number = len(server.seen)
            server.seen.append((time.monotonic(), body, dict(self.headers), self.path))
        plan = server.plan(number, body)
        if plan is None:
            connection = http.client.HTTPConnection("127.0.0.1", server.behind, timeout=60)
            connection.request("POST", self.path, raw, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            plan = answer.status, {}, answer.read()
        if plan == "drop":
            return self.connection.close()
        if plan == "slow":
            time.sleep(4)
            return self.connection.close()
        status, headers, content = plan
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):
        pass


@contextmanager
def between(plan, behind=0):
    """A server that does as planned, in front of the one at the port `behind`."""
    server = Server(("127.0.0.1", 0), Proxy)
    server.plan, server.behind, server.seen, server.lock = plan, behind, [], threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown(), server.server_close(), thread.join()


def client(server, **options):
    return Client(f"http://127.0.0.1:{server.server_port}/v1", **options)


def engine_for(server, concurrency=4, say=print, **options):
    return EndpointEngine(f"http://127.0.0.1:{server.server_port}/v1", "miniature", concurrency, say=say, **options)


def says(text, logprobs=None, reason="stop"):
    message = {"role": "assistant", "content": text}
    return 200, {}, {"choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}]}


ERROR = {"error": {"message": "come back later", "type": "server_error", "param": None, "code": None}}
FAULTS = [
    (429, {"Retry-After": "0.05"}, ERROR),
    (500, {}, ERROR),
    "drop",
    (200, {}, b'{"choices": [{"message": {"cont'),
    (200, {"Content-Type": "text/html"}, b"<html><body>Bad gateway</body></html>"),
    (200, {"Content-Length": "9999"}, b'{"choices": []'),
    (503, {}, b""),
    (200, {}, {"choices": []}),
    (200, {}, {"choices": [{"message": {"content": 5}}]}),
    (200, {}, [1, 2]),
    (502, {}, b"<html>" + b"x" * 5000),
    (200, {}, b"[" * 50_000),
]


@pytest.fixture(scope="module")
def local(world, tmp_path_factory):
    """What the engine answers, without a server."""
    out = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.evaluation.write_report", lambda *args: None)
        evaluate(world, out, "--precision", "fp32", model="miniature")
    return out


@pytest.fixture(scope="module")
def remote(world, port, tmp_path_factory):
    """What our server answers."""
    out = tmp_path_factory.mktemp("remote")
    model, name = through(port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.evaluation.write_report", lambda *args: None)
        evaluate(world, out, *name, **model)
    return out


def test_answers_through_our_server_equal_those_of_the_engine(parts, world, local, remote):
    mine, theirs = samples(local, "refcoco"), samples(remote, "refcoco")
    assert len(theirs) > 10 and len({record["output"] for record in theirs}) > 3
    assert [(r["id"], r["prompt"], r["output"], r["score"]) for r in theirs] == [
        (r["id"], r["prompt"], r["output"], r["score"]) for r in mine
    ]
    plain = PlainEngine(*parts, 8)
    for task in TASKS[1:]:  # our server gives no probabilities: the text decides
        for record in samples(remote, task)[:12]:
            picture = Image.open(world / record["image"]).convert("RGB")
            (said,) = plain.answer([picture], [Question(0, record["prompt"], Generate(64))])
            assert record["output"] == said.text and record["probabilities"] is None
            options = record["options"]
            read = parse_choice(said.text, options)
            assert record["choice"] == (None if read is None else options[read])
            assert record["score"] == float(record["choice"] == record["answer"])


def test_what_is_recorded(remote, port):
    results = json.loads((remote / "results.json").read_text())
    assert results["model"] == f"openai:http://127.0.0.1:{port}/v1" and results["settings"]["name"] == "miniature"
    assert results["chat_template"] is None and results["settings"]["precision"] is None
    vsr = results["tasks"]["vsr"]
    assert vsr["choices"] == {"by_probabilities": 0, "by_text": vsr["examples"]} and vsr["errors"] == 0
    assert results["tasks"]["refcoco"]["choices"] == {"by_probabilities": 0, "by_text": 0}


def test_several_images_in_their_order(parts, port):
    pictures = [Image.fromarray(scene(3, number).image) for number in range(3)]
    sets = [pictures[0], [pictures[0], pictures[1]], [pictures[1], pictures[0]], pictures]
    questions = [Question(at, text, Generate(12)) for at in range(4) for text in ("What is there?", "Where is it?")]
    expected = [answer.text for answer in PlainEngine(*parts, 1).answer(sets, questions)]
    with between(lambda number, body: None, port) as server:
        engine = engine_for(server, concurrency=1)
        assert [a.text for a in engine.answer([engine.prepare(some) for some in sets], questions)] == expected
    for (_, body, *_), question in zip(server.seen, questions, strict=True):
        *images, text = body["messages"][0]["content"]
        assert text == {"type": "text", "text": question.prompt}
        sent = [Image.open(io.BytesIO(base64.b64decode(i["image_url"]["url"].partition(",")[2]))) for i in images]
        shown = sets[question.image]
        assert [i.tobytes() for i in sent] == [i.tobytes() for i in (shown if isinstance(shown, list) else [shown])]


def test_a_hostile_server_changes_no_answer(world, port, remote, tmp_path, monkeypatch):
    """Every third request fails in one of many ways, and one would come too late."""
    monkeypatch.setattr(endpoint_client, "TIMEOUT", 3)
    faults = iter(["slow", *FAULTS * 50])
    lock = threading.Lock()

    def plan(number, body):
        with lock:
            return next(faults) if number % 3 == 1 else None

    with between(plan, port) as server:
        model, name = through(server.server_port)
        results = evaluate(world, tmp_path, *name, **model)
    assert len(server.seen) > 1.4 * sum(task["examples"] for task in results["tasks"].values())
    for task in TASKS:
        assert results["tasks"][task]["errors"] == 0
        found, expected = samples(tmp_path, task), samples(remote, task)
        assert [(r["id"], r["output"], r["score"]) for r in found] == [
            (r["id"], r["output"], r["score"]) for r in expected
        ]


@pytest.mark.parametrize("after", [9, *(pytest.param(after, marks=pytest.mark.slow) for after in (0, 30))])
def test_answers_before_an_outage_are_kept_and_only_the_others_are_asked_again(
    after, world, port, remote, tmp_path, monkeypatch
):
    monkeypatch.setattr(endpoint_client, "TRIES", 2)
    down = {"since": after}

    def plan(number, body):
        if "logprobs" in body:
            return None  # refused by our server in any case
        return None if down["since"] is None or number < down["since"] else (503, {}, ERROR)

    with between(plan, port) as server:
        model, name = through(server.server_port, "--concurrency", "3")
        expected = "none of the first" if after == 0 else "8 questions in a row .*503: come back later.*same command"
        with pytest.raises(ValueError if after == 0 else ConnectionError, match=expected):
            evaluate(world, tmp_path, *name, **model)
        answered = len([1 for _, body, *_ in server.seen[:after] if "logprobs" not in body])
        stored = [json.loads(line) for file in tmp_path.glob("*/*.jsonl") for line in file.read_text().splitlines()]
        assert sum("error" not in record for record in stored) == answered
        asked, down["since"] = len(server.seen), None
        results = evaluate(world, tmp_path, *name, **model)
        again = [body for _, body, *_ in server.seen[asked:] if "logprobs" not in body]
    assert len(again) == sum(task["examples"] for task in results["tasks"].values()) - answered
    for task in TASKS:
        assert results["tasks"][task]["errors"] == 0
        assert [r["output"] for r in samples(tmp_path, task)] == [r["output"] for r in samples(remote, task)]


def test_a_question_that_breaks_the_server_is_an_error_and_is_asked_again(world, port, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_client, "TRIES", 2)
    poison = samples(remote, "refcoco")[3]["prompt"]
    ill, more = {"is": True}, ("--max_error_share", "1")

    def plan(number, body):
        text = body["messages"][0]["content"][-1]["text"]
        return (500, {}, ERROR) if ill["is"] and text == poison else None

    count = sum(record["prompt"] == poison for record in samples(remote, "refcoco"))
    with between(plan, port) as server:
        model, name = through(server.server_port, *more)
        results = evaluate(world, tmp_path, *name, **model, tasks=["refcoco"])
        assert results["tasks"]["refcoco"]["errors"] == count
        bad = [record for record in samples(tmp_path, "refcoco") if "error" in record]
        assert len(bad) == count and all(record["prompt"] == poison and record["score"] == 0 for record in bad)
        assert bad[0]["error"] == "no answer from the server: it answered 500: come back later, in the last of 2 tries"
        before = samples(tmp_path, "refcoco")
        again = evaluate(world, tmp_path, *name, **model, tasks=["refcoco"])
        assert samples(tmp_path, "refcoco") == before, "what is asked in vain once more is as before"
        assert again["tasks"]["refcoco"]["metrics"] == results["tasks"]["refcoco"]["metrics"]
        read_runs([tmp_path])[0].records("refcoco")
        ill["is"], asked = False, len(server.seen)
        results = evaluate(world, tmp_path, *name, **model, tasks=["refcoco"])
    assert len(server.seen) == asked + count
    assert results["tasks"]["refcoco"] | {"errors": 0} == results["tasks"]["refcoco"]
    assert [r["output"] for r in samples(tmp_path, "refcoco")] == [r["output"] for r in samples(remote, "refcoco")]


def test_samples_that_were_edited_are_refused_before_anything_is_asked_again(world, port, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_client, "TRIES", 1)
    plan = lambda number, body: (500, {}, ERROR) if number == 12 else None  # noqa: E731
    with between(plan, port) as server:
        model, name = through(server.server_port, "--max_error_share", "1")
        assert evaluate(world, tmp_path, *name, **model, tasks=["refcoco"])["tasks"]["refcoco"]["errors"] == 1
        path = tmp_path / "refcoco" / "samples.jsonl"
        path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0'))
        with pytest.raises(ValueError, match="was changed after it was written"):
            evaluate(world, tmp_path, *name, **model, tasks=["refcoco"])


def test_a_refused_question_is_its_own_error(port):
    plan = lambda number, body: (  # noqa: E731
        (400, {}, {"error": {"message": "the context is too long: reduce max_tokens", "param": "max_tokens"}})
        if "long" in body["messages"][0]["content"][0]["text"]
        else None
    )
    with between(plan, port) as server:
        engine = engine_for(server)
        answers = engine.answer([[]], [Question(0, text, Generate(4)) for text in ("Hello", "long", "Hi")])
        assert [bool(answer.error) for answer in answers] == [False, True, False] and len(server.seen) == 3
        assert answers[1].error == (
            "the server refuses the question: it answered 400: the context is too long: reduce max_tokens"
        )


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_what_asking_again_does_not_mend(status):
    headers = {"Location": "http://127.0.0.1:9/elsewhere"} if status == 307 else {}
    with between(lambda number, body: (status, headers, {"error": "not for you"})) as server:
        with pytest.raises(NoAnswer, match=f"^it answered {status}: not for you$"):
            client(server).complete({})
        assert len(server.seen) == 1


def test_the_key_is_sent_and_written_nowhere(world, port, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    error = {"error": {"message": "the key sk-secret-123 has no credit for this", "param": None}}
    with between(lambda number, body: (400, {}, error) if number % 5 == 4 else None, port) as server:
        model, name = through(server.server_port, "--max_error_share", "1")
        evaluate(world, tmp_path, *name, **model)
    assert {headers["Authorization"] for _, _, headers, _ in server.seen} == {"Bearer sk-secret-123"}
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "the key $OPENAI_API_KEY has no credit" in written and "sk-secret" not in written


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
    with pytest.raises(Refused):
        raise Refused("said", None)


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


def test_where_results_go(world, port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, name = through(port)
    arguments = ["--tasks", "vsr", "--data_root", str(world), "--allow_partial", "true", "--limit", "2"]
    main(parse_evaluate(["--model", model["model"], *name, *arguments]))
    assert (tmp_path / "runs" / "eval-miniature" / "results.json").is_file()
