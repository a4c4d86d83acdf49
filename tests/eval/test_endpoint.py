"""Models behind a server: answers are those of the engine, and no failure of the server loses or invents one."""

import base64
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from planned_servers import ERROR, FAULTS, between, engine_for

import prismatic
from eval import endpoint_client
from eval.engine import Question
from eval.generate_engine import PlainEngine
from eval.report.runs import read_runs
from eval.streaming import StreamingEngine
from eval.task import Generate
from prismatic.miniature.benchmarks import write_benchmarks
from prismatic.miniature.scenes import scene
from prismatic.text.parsing import parse_choice
from recipes.config.evaluate import parse_evaluate
from recipes.evaluate import main

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
    pytest.importorskip("fastapi"), pytest.importorskip("uvicorn")
    from clients.served import served

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


@pytest.mark.slow
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


def test_the_key_is_sent_and_written_nowhere(world, port, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    error = {"error": {"message": "the key sk-secret-123 has no credit for this", "param": None}}
    with between(lambda number, body: (400, {}, error) if number % 5 == 4 else None, port) as server:
        model, name = through(server.server_port, "--max_error_share", "1")
        evaluate(world, tmp_path, *name, **model)
    assert {headers["Authorization"] for _, _, headers, _ in server.seen} == {"Bearer sk-secret-123"}
    written = "".join(file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert "the key $OPENAI_API_KEY has no credit" in written and "sk-secret" not in written


def test_where_results_go(world, port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, name = through(port)
    arguments = ["--tasks", "vsr", "--data_root", str(world), "--allow_partial", "true", "--limit", "2"]
    main(parse_evaluate(["--model", model["model"], *name, *arguments]))
    assert (tmp_path / "runs" / "eval-miniature" / "results.json").is_file()
