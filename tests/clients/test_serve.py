"""`prismatic serve` answers OpenAI's client about images as the model does, however many ask at the same time."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from golden_cases import ROOT  # noqa: E402
from PIL import Image  # noqa: E402
from served import message, post, served, until  # noqa: E402

import prismatic  # noqa: E402
from eval.streaming import StreamingEngine  # noqa: E402
from prismatic.miniature.scenes import scene  # noqa: E402
from recipes.config.serve import parse_serve  # noqa: E402
from recipes.serve import main  # noqa: E402
from recipes.serving.server import bind, is_local  # noqa: E402

QUESTIONS = ("What color is the cross?", "How many objects are there?", "What is there?", "Is there a circle?")


def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)


def picture(number):
    return Image.fromarray(scene(3, number).image)


@pytest.fixture(scope="module")
def parts():
    return prismatic.load("miniature")


@pytest.fixture(scope="module")
def port(parts):
    engine = StreamingEngine(*parts, batch_size=4)
    with served(engine) as port:
        yield port
    engine.close(finish=False)


def expected(parts, conversation, pictures, tokens):
    """What `generate` answers, one question at a time."""
    model, processor = parts
    inputs = processor.ask([conversation], [pictures])
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip(), inputs["input_ids"].shape[1], len(ids)


@pytest.mark.parametrize("question", QUESTIONS[:2])
def test_an_answer_about_an_image(parts, port, question):
    text, prompt, tokens = expected(parts, question, [picture(0)], 10)
    asked = {"model": "miniature", "messages": [message(picture(0), question)], "max_tokens": 10}
    found = client(port).chat.completions.create(**asked)
    assert found.choices[0].message.content == text and found.choices[0].message.role == "assistant"
    assert found.usage.prompt_tokens == prompt and found.usage.total_tokens == prompt + found.usage.completion_tokens
    assert (
        found.choices[0].finish_reason in ("stop", "length") and tokens - 1 <= found.usage.completion_tokens <= tokens
    )
    streamed = client(port).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *parts_of_it, last = list(streamed)
    assert parts_of_it[0].choices[0].delta.role == "assistant" and parts_of_it[0].object == "chat.completion.chunk"
    assert "".join(part.choices[0].delta.content or "" for part in parts_of_it) == text
    assert [part.choices[0].finish_reason for part in parts_of_it[:-1]] == [None] * (len(parts_of_it) - 1)
    assert parts_of_it[-1].choices[0].finish_reason == found.choices[0].finish_reason
    assert last.usage == found.usage and last.choices == []


def test_images_of_all_turns_come_in_their_order(parts, port):
    turns = [
        message(picture(0), "What is there?"),
        {"role": "assistant", "content": "A circle."},
        message("And ", "here?", picture(1)),
    ]
    plain = [{"role": "user", "content": "What is there?"}, turns[1], {"role": "user", "content": "And here?"}]
    text, *_ = expected(parts, plain, [picture(0), picture(1)], 12)
    found = client(port).chat.completions.create(model="miniature", messages=turns, max_completion_tokens=12)
    assert found.choices[0].message.content == text
    text, *_ = expected(parts, "Hello", None, 2)
    found = client(port).chat.completions.create(model="miniature", messages=[message("Hello")], max_tokens=2)
    assert found.choices[0].message.content == text and found.choices[0].finish_reason == "length"


def test_how_answers_are_drawn_and_where_they_stop(port):
    asked = {"model": "miniature", "messages": [message(picture(2), "What is there?")], "max_tokens": 20}
    create = client(port).chat.completions.create
    whole = create(**asked).choices[0].message.content
    stop = whole.split()[1]
    for given in (stop, ["nothing of the kind", stop]):
        stopped = create(**asked, stop=given).choices[0]
        assert stopped.message.content == whole[: whole.index(stop)].strip() and stopped.finish_reason == "stop"
    drawn = [create(**asked, temperature=2, top_p=0.9, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1


def test_the_example_of_the_docs(parts, port, tmp_path, monkeypatch, capsys):
    code = re.search(r"```py\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path)
    picture(0).save("photo.jpg")
    exec(code.replace(":8000", f":{port}"), {})
    assert capsys.readouterr().out == expected(parts, QUESTIONS[0], [Image.open("photo.jpg")], 100)[0]


def test_models_and_health(port):
    assert [model.id for model in client(port).models.list()] == ["miniature"]
    assert client(port).models.retrieve("miniature").owned_by == "prismatic"
    with pytest.raises(openai.NotFoundError, match="there is no model 'a/b': this server has 'miniature'"):
        client(port).models.retrieve("a/b")
    assert health(port) == {"status": "ok", "running": 0, "waiting": 0}


def test_what_does_not_fit_the_context(port):
    status, _, found = post(port, {"model": "miniature", "messages": [message("a b " * 1000)]})
    assert status == 400 and "context" in found["error"]["message"] and found["error"]["param"] == "messages"
    status, _, found = post(port, {"model": "miniature", "messages": [message("a", role="assistant")]})
    assert status == 400 and "\n" not in found["error"]["message"]
    asked = [{"role": "developer", "content": "Be brief."}, message("a")]
    status, _, found = post(port, {"model": "miniature", "messages": asked})
    assert status == 400 and "no place for a system message" in found["error"]["message"]


def test_pages_of_other_sites_are_refused(port):
    """By the origin that browsers send; and a server of this machine alone is not asked for by another name."""
    import httpx

    body = {"model": "miniature", "messages": [message("Hi")], "max_tokens": 1}
    for origin, status in (("http://evil.example", 403), (f"http://127.0.0.1:{port}", 200)):
        found = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers={"Origin": origin})
        assert found.status_code == status


def health(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["miniature", "--port", "65536"], "--port is 65536: expected 0 to 65535"),
        (["miniature", "--timeout", "0"], "--timeout is 0: expected more than 0"),
        (["miniature", "--batch_size", "0"], "--batch_size is 0: expected 1 or more"),
        (["miniature", "--waiting", "-1"], "--waiting is -1: expected 0 or more"),
        (["miniature", "--precision", "fp16"], "auto or bf16 or fp32"),
        (["miniature", "--workers", "2"], "unknown setting '--workers'"),
    ],
)
def test_settings_that_make_no_sense(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_serve(arguments)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_the_model_comes_first_or_by_its_name():
    assert parse_serve(["runs/mine", "--port", "1"]) == parse_serve(["--port", "1", "--model", "runs/mine"])
    assert parse_serve([]).model == "miniature" and parse_serve([]).host == "127.0.0.1"


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    with closing_socket() as taken, pytest.raises(OSError, match=f"--host 127.0.0.1 --port {taken}: Address already"):
        bind("127.0.0.1", taken)
    with pytest.raises(OSError, match="cannot serve at --host no.such.host.invalid --port 0: "):
        bind("no.such.host.invalid", 0)
    monkeypatch.setattr("recipes.serve.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape("pip install 'prismatic-locality[app]'")):
        main(parse_serve(["miniature"]))


@contextmanager
def closing_socket():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_which_addresses_are_of_this_machine_alone():
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "example.com")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@contextmanager
def process(tmp_path, model, *arguments):
    """The command as a user starts it, on CPU, and its port."""
    log = tmp_path / "log.txt"
    command = [sys.executable, "-m", "prismatic", "serve", model, "--port", "0", "--device", "cpu", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as file:
        started = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
    try:
        until(lambda: started.poll() is not None or "serving " in log.read_text(), 120)
        assert started.poll() is None, log.read_text()
        port = int(re.search(r"at http://127\.0\.0\.1:(\d+)/v1", log.read_text())[1])
        yield started, port
    finally:
        started.kill()
        started.wait()


@pytest.mark.slow
def test_many_questions_at_the_same_time(parts, tmp_path):
    questions = [(number, f"{QUESTIONS[k % 4]}{' ' * (k // 4)}") for number in range(8) for k in range(8)]
    single = [expected(parts, question, [picture(number)], 10)[0] for number, question in questions]
    with process(tmp_path, "miniature") as (started, port):

        def ask(number, question):
            asked = [message(picture(number), question)]
            found = client(port).chat.completions.create(model="miniature", messages=asked, max_tokens=10)
            return found.choices[0].message.content

        with ThreadPoolExecutor(64) as pool:
            assert list(pool.map(lambda given: ask(*given), questions)) == single
        assert health(port) == {"status": "ok", "running": 0, "waiting": 0}
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 0


LONG = {"model": "endless", "messages": [message("Hello")], "max_tokens": 900, "stream": True}


@pytest.fixture
def endless(tmp_path):
    """A folder with the bundled model, which does not know when to stop."""
    for part in prismatic.load("miniature"):
        if hasattr(part, "generation_config"):
            part.generation_config.eos_token_id = part.generation_config.pad_token_id
        part.save_pretrained(tmp_path / "endless")
    return "endless"


@pytest.mark.slow
def test_hang_ups_and_signals(endless, tmp_path):
    with process(tmp_path, endless, "--batch_size", "2") as (started, port):
        streams = [client(port).chat.completions.create(**LONG) for _ in range(2)]
        for stream in streams:
            next(stream)
        with ThreadPoolExecutor() as pool:
            third = pool.submit(post, port, LONG | {"stream": False, "max_tokens": 5})
            until(lambda: health(port)["waiting"] == 1)
            for stream in streams:
                stream.close()
            assert third.result()[0] == 200  # a place is free long before the two would have ended
            until(lambda: health(port) == {"status": "ok", "running": 0, "waiting": 0})

            stream = client(port).chat.completions.create(**LONG | {"max_tokens": 200})
            next(stream)
            others = [pool.submit(post, port, LONG | {"stream": False, "max_tokens": 100}) for _ in range(3)]
            until(lambda: health(port) == {"status": "ok", "running": 2, "waiting": 2})
            started.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port), 5)
            assert [other.result()[2]["usage"]["completion_tokens"] for other in others] == [100] * 3
            assert list(stream)[-1].choices[0].finish_reason == "length"
            assert started.wait(20) == 0


@pytest.mark.slow
def test_a_second_signal_ends_at_once(endless, tmp_path):
    with process(tmp_path, endless) as (started, port):
        next(client(port).chat.completions.create(**LONG))
        started.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        started.send_signal(signal.SIGTERM)
        assert started.wait(2) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_the_server_of_transformers(parts, folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "import prismatic; from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: started.poll() is not None or accepts(port), 120)
        asked = {"model": str(folder), "messages": [message(picture(0), QUESTIONS[0])], "max_tokens": 10}
        found = client(port).chat.completions.create(**asked, temperature=0).choices[0].message.content
        assert found.strip() == expected(parts, QUESTIONS[0], [picture(0)], 10)[0]
    finally:
        started.kill()
        started.wait()


def accepts(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
