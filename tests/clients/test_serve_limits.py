"""What a stranger sends to the server is refused in one line, and what it takes is bounded."""

import base64
import io
import json
import socket
import struct
import time
from contextlib import closing

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from image_bombs import bomb  # noqa: E402
from PIL import Image  # noqa: E402
from served import Puppet, data_url, image_part, message, post, served, until  # noqa: E402

BASIC = {"model": "miniature", "messages": [{"role": "user", "content": "What is there?"}]}
GREY = Image.new("RGB", (8, 8), "grey")


@pytest.fixture
def engine():
    return Puppet()


@pytest.fixture(scope="module")
def strict():
    """The port of a server for requests that never reach the engine."""
    with served(Puppet()) as port:
        yield port


def client(port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)


def refused(port, body, status=400):
    got, _, answer = post(port, body)
    error = answer["error"]
    assert got == status and error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 300
    return error


def said(*parts):
    return BASIC | {"messages": [message(*parts)]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"stop":' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b"[]", "expected a JSON object"),
        (b'{"stop": [' + b"{}," * 150_000 + b"{}]}", "more than 200,000 values"),
        (b'{"model": "miniature", "messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b'{"model": "miniature", "\\ud800": 1}', "unknown parameter"),
    ],
)
def test_bodies_that_are_no_request(strict, body, message):
    assert message in refused(strict, body)["message"]


def gif_bomb():
    file = io.BytesIO()
    GREY.save(file, "GIF")
    return file.getvalue()[:6] + struct.pack("<HH", 65535, 65535) + file.getvalue()[10:]


def jpeg_without_end():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()[:-400]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/cat.png", "opens no addresses and no files"),
        ("file:///etc/passwd", "opens no addresses and no files"),
        ("/etc/passwd", "opens no addresses and no files"),
        ("data:image/png,abc", "expected data:image/png;base64"),
        ("data:image/png;base64,????", "is no base64"),
        ("data:image/png;base64,\u00e9", "is no base64"),
        ("data:image/png;base64,abc", "is no base64"),
        (data_url(b""), "no image of a known format"),
        (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "no image of a known format"),
        (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), "no image of a known format"),
        (data_url(bomb(31_623)), "decompression bomb"),
        (data_url(gif_bomb()), "decompression bomb"),
        (data_url(jpeg_without_end()), "truncated"),
    ],
)
def test_images_that_are_none(strict, url, message):
    error = refused(strict, BASIC | {"messages": [{"role": "user", "content": [image_part(GREY), image_part(url)]}]})
    assert message in error["message"] and error["param"] == "messages[0].content[1].image_url.url"
    assert " at 0x" not in error["message"]


def test_many_images_and_large_ones(strict, monkeypatch):
    assert "17 images, expected at most 16" in refused(strict, said(*[GREY] * 17))["message"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "at most 36, which is what the images before it left" in refused(strict, said(GREY, GREY))["message"]


def test_long_bodies_are_not_read_to_their_end(strict):
    with pytest.raises(openai.APIStatusError) as found:
        client(strict).chat.completions.create(**BASIC | {"messages": [message("x" * 1_100_000)]})
    assert found.value.status_code == 413 and found.value.code == "request_too_large"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    with closing(socket.create_connection(("127.0.0.1", strict), 10)) as liar:  # says that there is no end
        liar.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            liar.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        assert liar.recv(1000).startswith(b"HTTP/1.1 413 ")
    with closing(socket.create_connection(("127.0.0.1", strict), 10)) as liar:  # says more than it will ever send
        liar.sendall(head + b"Content-Length: 1000000000000\r\n\r\n{")
        assert liar.recv(1000).startswith(b"HTTP/1.1 413 ")
    with closing(socket.create_connection(("127.0.0.1", strict), 10)) as liar:  # says less than it sends
        liar.sendall(head + b"Content-Length: 5\r\n\r\n" + json.dumps(BASIC).encode())
        assert liar.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.slow
def test_requests_that_take_too_long(engine):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
    with served(engine, seconds=0.5) as port:
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as slow:
            slow.sendall(head)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        with pytest.raises(openai.APIStatusError, match="no whole answer within 0.5 seconds") as found:
            client(port).chat.completions.create(**BASIC)
        assert found.value.status_code == 504 and engine.next().cancelled
        with pytest.raises(openai.APIStatusError) as found:
            list(client(port).chat.completions.create(**BASIC, stream=True))
        assert found.value.status_code == 504 and engine.next().cancelled
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as one:
            body = json.dumps(BASIC | {"stream": True}).encode()
            one.sendall(head.replace(b"50", str(len(body)).encode())[:-1] + body)
            answer = engine.next()
            answer.say("a ")
            got = b""
            while b"within 0.5 seconds" not in got:
                got += one.recv(1000)
        assert b'"content": "a "' in got and answer.cancelled


def test_clients_that_do_not_read(engine):
    body = json.dumps(BASIC | {"stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with served(engine, requests=1, seconds=0.5) as port:
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as lazy:
            lazy.sendall(head + body)
            answer = engine.next()
            for _ in range(20):
                answer.say("x" * 1_000_000)
            until(lambda: answer.cancelled, 2)
            until(lambda: post_and_answer(port, engine) == 200, 5)  # its place is free


def test_a_stream_that_fails_says_so(engine):
    with served(engine) as port:
        import threading

        found = []

        def ask():
            try:
                for part in client(port).chat.completions.create(**BASIC, stream=True):
                    found.append(part.choices[0].delta.content)
            except openai.APIError as error:
                found.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        answer = engine.next()
        answer.say("a ")
        until(lambda: "a " in found)
        answer.end(None, "out of memory")
        thread.join()
        assert found == ["", "a ", "the engine failed on this request: out of memory"]


def test_a_full_queue(engine):
    with served(engine, requests=2) as port:
        engine.full = True
        with pytest.raises(openai.RateLimitError, match="3 requests wait already: try again later") as found:
            client(port).chat.completions.create(**BASIC)
        assert found.value.response.headers["retry-after"] == "1"
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        busy = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(2)]
        for connection in busy:  # which count while they are being read
            connection.sendall(head)
        time.sleep(0.2)
        assert post(port, BASIC)[0] == 429
        for connection in busy:
            connection.close()
        engine.full = False
        until(lambda: post_and_answer(port, engine) == 200)


def post_and_answer(port, engine):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(post, port, BASIC)
        until(lambda: engine.answers or asked.done())
        for answer in engine.answers:
            answer.end()
        engine.answers.clear()
        return asked.result()[0]


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_hang_up_free_their_row(engine, stream):
    body = json.dumps(BASIC | {"stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with served(engine) as port:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.sendall(head + body)
        answer = engine.next()
        answer.say("a ")
        if stream:
            assert connection.recv(10_000)
        assert not answer.cancelled
        connection.close()
        until(lambda: answer.cancelled, 2)
        connection = socket.create_connection(("127.0.0.1", port), 10)
        connection.sendall(head + body[:10])
        connection.close()
        assert not engine.answers


def test_no_text_of_a_request_is_logged(engine, capfd, caplog, monkeypatch):
    caplog.set_level(0)
    secret = "the-secret-question"

    def fail(request, notify=None):
        raise KeyError(request.messages[0]["content"])

    with served(engine) as port:
        refused(port, BASIC | {"messages": [{"role": "user", "content": [image_part(secret)]}]})
        monkeypatch.setattr(engine, "submit", fail)
        error = refused(port, said(secret), 500)
        assert secret not in json.dumps(error)
        refused(port, secret.encode())
    out, err = capfd.readouterr()
    assert "KeyError while answering a request" in caplog.text + err  # it is logged that there was something
    assert secret not in caplog.text + out + err


def test_addresses_that_are_not_there(strict):
    with pytest.raises(openai.NotFoundError, match="expected POST /v1/chat/completions"):
        client(strict).embeddings.create(model="miniature", input="a")
    with pytest.raises(openai.NotFoundError) as found:
        client(strict).chat.completions.create(**BASIC | {"model": "gpt"})
    assert found.value.code == "model_not_found" and found.value.param == "model"


def test_base64_may_be_wrapped():
    """As the command base64 writes it."""
    from recipes.serving.images import read_image

    head, data = data_url(GREY).split(",")
    wrapped = base64.encodebytes(base64.b64decode(data)).decode()
    assert read_image(f"{head},{wrapped}", "here", None).tobytes() == GREY.tobytes()
