"""The application behind a port of this process, and an engine that does as tests say."""

import base64
import http.client
import io
import json
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

from PIL import Image

from eval.streaming import QueueFull

LIMITS = {"requests": 8, "body": 1_000_000, "seconds": 30, "new_tokens": 900}


@contextmanager
def served(engine, name="miniature", **limits):
    """The port at which an engine answers."""
    import uvicorn

    from recipes.serving.api import make_app
    from recipes.serving.chat import Limits
    from recipes.serving.server import bind

    listening = bind("127.0.0.1", 0)
    app = make_app(engine, name, Limits(**LIMITS | limits))
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    port = listening.getsockname()[1]
    thread.start()
    until(lambda: server.started)
    yield port
    server.should_exit = server.force_exit = True
    thread.join()


def until(condition, seconds=10):
    """Waits."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


class Answer(SimpleNamespace):
    """An answer of `Puppet`; `say` and `end` are what an engine's thread does."""

    def say(self, piece):
        self.text += piece
        self.notify(piece)

    def end(self, reason="stop", error=None):
        self.finish_reason, self.error = reason, error
        self.notify(None)

    def cancel(self):
        self.cancelled = True


class Puppet:
    """An engine that answers nothing by itself."""

    running = waiting_now = 0
    full = False

    def __init__(self):
        self.answers = []

    def submit(self, request, notify=None):
        if self.full:
            raise QueueFull("3 requests wait already")
        numbers = {"prompt_tokens": 3, "completion_tokens": 2}
        self.answers.append(
            Answer(request=request, notify=notify, text="", finish_reason=None, error=None, cancelled=False, **numbers)
        )
        return self.answers[-1]

    def next(self):
        """The answer to the latest request, as soon as it has come."""
        until(lambda: self.answers)
        return self.answers.pop()


def data_url(picture, kind="PNG"):
    """A picture, or bytes, as a data URL."""
    file = io.BytesIO(picture if isinstance(picture, bytes) else b"")
    if isinstance(picture, Image.Image):
        picture.save(file, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url if isinstance(url, str) else data_url(url)}}


def message(*parts, role="user"):
    """A message of texts and pictures."""
    return {
        "role": role,
        "content": [{"type": "text", "text": part} if isinstance(part, str) else image_part(part) for part in parts],
    }


def post(port, body, headers=()):
    """Status, headers and JSON of the answer to a body, which is made JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", "/v1/chat/completions", body, dict(headers))
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), json.loads(response.read())
    connection.close()
    return found
