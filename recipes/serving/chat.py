"""POST /v1/chat/completions: from a request as it comes in to the last byte of its answer."""

import asyncio
import json
import logging
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from eval.streaming import QueueFull
from recipes.serving.refusal import Refusal
from recipes.serving.requests import Asked, read_request

READERS = 2  # requests that are parsed, and whose images are decoded, at the same time: that is what takes memory
LAST_WORDS = 1  # seconds in which a client that is too slow has to take the error
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    requests: int  # that are held at once, in whatever state
    body: int  # bytes
    seconds: float  # from its first byte to the last of its answer
    new_tokens: int  # of an answer


class ChatCompletions:
    """An ASGI application, for it has to see clients hang up while it writes.

    Args:
        engine: an `eval.streaming.StreamingEngine`.
        name: of its model.
        limits: of each request.
    """

    def __init__(self, engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.readers = ThreadPoolExecutor(READERS, "reader")
        self.held = 0

    async def __call__(self, scope, receive, send) -> None:
        """Answers one request, or says why not."""
        deadline = time.monotonic() + self.limits.seconds
        client = Client(receive, send)
        self.held += 1
        try:
            if self.held > self.limits.requests:
                raise QueueFull(f"{self.limits.requests} requests are being answered or wait")
            headers = dict(scope["headers"])
            check_origin(headers)
            length = headers.get(b"content-length", b"")
            body = await client.body(length, self.limits)
            loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
            asked, answer = await loop.run_in_executor(self.readers, self._submit, body, deadline, loop, pieces)
            write = self._stream if asked.stream else self._whole
            try:
                in_time = await client.wait_for(write(client, asked, answer, pieces), deadline)
            finally:
                answer.cancel()  # nothing, if it has ended
            if not in_time:
                raise Refusal(f"there was no whole answer within {self.limits.seconds:g} seconds", status=504)
        except HungUp:
            pass
        except QueueFull as error:
            await client.refuse(Refusal(f"{error}: try again later", status=429, code="rate_limit_exceeded"))
        except Refusal as refusal:
            await client.refuse(refusal)
        except Exception as error:  # its message may hold text of the request, which is not logged
            place = "".join(traceback.format_tb(error.__traceback__))
            logging.getLogger(__name__).error("%s while answering a request:\n%s", type(error).__name__, place)
            await client.refuse(Refusal("the server failed on this request", status=500))
        finally:
            self.held -= 1

    def _submit(self, body: bytes, deadline: float, loop, pieces: asyncio.Queue):
        """Reads a request and hands it to the engine, in a thread that may take its time."""
        if time.monotonic() > deadline:
            raise Refusal(f"the request was not read within {self.limits.seconds:g} seconds", status=504)
        asked = read_request(body, self.name, self.limits.new_tokens)

        def notify(piece: str | None) -> None:
            if asked.stream or piece is None:
                with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

        try:
            return asked, self.engine.submit(asked.request, notify)
        except ValueError as error:
            raise Refusal(str(error), "messages") from None

    def _head(self, kind: str) -> dict:
        made = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
        return made | {"model": self.name}

    async def _whole(self, client: "Client", asked: Asked, answer, pieces: asyncio.Queue) -> None:
        await pieces.get()
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        found = self._head("chat.completion") | {"choices": [choice], "usage": _usage(answer)}
        await client.json(json.dumps(found).encode())

    async def _stream(self, client: "Client", asked: Asked, answer, pieces: asyncio.Queue) -> None:
        head = self._head("chat.completion.chunk") | ({"usage": None} if asked.include_usage else {})

        async def write(delta: dict, reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            await client.event(json.dumps(head | {"choices": [choice]}).encode())

        piece = await pieces.get()
        if piece is None:
            _reason(answer)  # before anything is sent: an error has its status then
        await write({"role": "assistant", "content": ""})
        while piece is not None:
            await write({"content": piece})
            piece = await pieces.get()
        await write({}, _reason(answer))
        if asked.include_usage:
            await client.event(json.dumps(head | {"choices": [], "usage": _usage(answer)}).encode())
        await client.event(b"[DONE]", more=False)


def check_origin(headers: dict[bytes, bytes]) -> None:
    """Raises Refusal for what a page of another site sends from somebody's browser."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin and origin.partition("://")[2] != headers.get(b"host", b"").decode("latin-1"):
        raise Refusal("pages of other sites may not ask this server", status=403)


class HungUp(Exception):
    """The client is gone."""


class Client:
    """The other end of a request."""

    def __init__(self, receive, send):
        self.receive, self.send = receive, send
        self.streams = self.started = False

    async def body(self, length: bytes, limits: Limits) -> bytes:
        """The body of the request, of which no more than the limit is ever held.

        Raises:
            Refusal: it is longer, or comes too slowly.
            HungUp: it does not come whole.
        """
        too_long = Refusal(f"the body is longer than {limits.body:,} bytes", status=413, code="request_too_large")
        if length.isdigit() and int(length) > limits.body:
            raise too_long
        body, more, ends = bytearray(), True, time.monotonic() + limits.seconds
        while more:
            try:
                message = await asyncio.wait_for(self.receive(), ends - time.monotonic())
            except asyncio.TimeoutError:
                raise Refusal(f"the body did not come within {limits.seconds:g} seconds", status=408) from None
            if message["type"] == "http.disconnect":
                raise HungUp
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limits.body:
                raise too_long
        return bytes(body)

    async def wait_for(self, work, deadline: float) -> bool:
        """Whether `work` was done before the deadline; what is not is cancelled.

        Raises:
            HungUp: the client did so first.
        """
        work, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._hangs_up())
        try:
            left = max(deadline - time.monotonic(), 0)
            done, _ = await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel(), gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if work in done:
            work.result()
        elif gone in done:
            raise HungUp
        return bool(done)

    async def _hangs_up(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def json(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Sends a whole answer."""
        self.started = True
        given = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
        pairs = [(name.encode(), value.encode()) for name, value in given.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})

    async def event(self, data: bytes, more: bool = True) -> None:
        """Sends a part of an answer, as a server-sent event."""
        if not self.started:
            self.started = self.streams = True
            await self.send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await self.send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": more})

    async def refuse(self, refusal: Refusal) -> None:
        """Sends an error: as the answer, or as the last event of one that has begun."""
        if not self.started:
            await self.json(refusal.body(), refusal.status, refusal.headers())
        elif self.streams:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.event(refusal.body(), more=False), LAST_WORDS)


def _reason(answer) -> str:
    """Why an answer ended.

    Raises:
        Refusal: it was not by its own end.
    """
    if answer.error is not None:
        raise Refusal(f"the engine failed on this request: {answer.error}", status=500)
    if answer.finish_reason == "cancelled":
        raise Refusal("the server is stopping", status=503)
    return answer.finish_reason


def _usage(answer) -> dict:
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
