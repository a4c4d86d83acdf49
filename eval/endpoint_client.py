"""Requests to a server with OpenAI's interface: no faster than allowed, and sent again where it fails for a while."""

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

KEY = "OPENAI_API_KEY"  # environment variable; the key is sent, and written nowhere
TRIES = 7  # of a request: with the pauses between them, about a minute
PAUSE = 1.0  # seconds after the first try; twice as many after each further one
LONGEST_ASKED = 600  # seconds that a server may ask to wait for
TIMEOUT = 300  # seconds for an answer
LARGEST = 16 << 20  # bytes of an answer
OWN_FAULT = (400, 413, 414, 415, 422)  # statuses that blame the request: it is refused each time
LOGPROBS = "logprobs"  # with these words in it a 403 refuses a parameter, and not this user
PASSING = (408, 409, 425, 429)  # and all from 500: the same request may succeed later


class Refused(Exception):
    """The server does not answer this request, however often it is sent.

    Attributes:
        param: The part of the request that it names.
        code: Its name for the case.
    """

    def __init__(self, message: str, param: Any = None, code: Any = None):
        super().__init__(message)
        self.param, self.code = ("" if said in (None, "None", "null") else str(said) for said in (param, code))


class NoAnswer(Exception):
    """The server answers nothing at the moment, or not to this user."""


class _Passing(Exception):
    """It may be tried again, after `pause` seconds if the server says how many."""

    def __init__(self, message: str, pause: float | None = None):
        super().__init__(message)
        self.pause = pause


def check_url(url: str) -> None:
    """Raises ValueError for a base URL of a server that is none, or that holds a secret, which would be recorded."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no base URL of a server: expected one such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"the URL of {parts.hostname} has a user name, a query or a mark: put the key into ${KEY}")


class Pace:
    """When requests may be sent: so many a minute, evenly spaced, and none while the server asks to wait."""

    def __init__(self, per_minute: float | None = None):
        """Takes the number of requests a minute; None for no limit."""
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next, self.lock, self.ended = 0.0, threading.Lock(), threading.Event()

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        with self.lock:
            at = max(time.monotonic(), self.next)
            self.next = at + self.gap
        self.sleep(at - time.monotonic())

    def hold(self, seconds: float) -> None:
        """Lets no request be sent for so long."""
        with self.lock:
            self.next = max(self.next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Sleeps, unless nobody waits for answers any more.

        Raises:
            NoAnswer: `ended` is set.
        """
        if self.ended.wait(max(seconds, 0)):
            raise NoAnswer("the evaluation was stopped")


class Client:
    """A server with OpenAI's interface.

    Args:
        url: Base URL, such as `http://127.0.0.1:8000/v1`.
        per_minute: Requests that may be sent in a minute; None for no limit.

    Raises:
        ValueError: It is no such URL.
    """

    def __init__(self, url: str, per_minute: float | None = None):
        check_url(url)
        self.address, self.pace = f"{url.rstrip('/')}/chat/completions", Pace(per_minute)
        self.key = os.environ.get(KEY, "").strip()
        handlers: list = [_NoRedirects]
        if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)

    def complete(self, body: dict) -> dict:
        """The choice that a server makes of a chat completion: has a `message`, and maybe `logprobs`.

        Raises:
            Refused: The request is wrong, as the server says.
            NoAnswer: There was none after several tries, or the server lets this user ask nothing.
        """
        data, reason = json.dumps(body).encode(), ""
        for number in range(TRIES):
            self.pace.wait()
            try:
                return self._once(data)
            except _Passing as problem:
                reason, pause = str(problem), problem.pause
            if pause is not None and pause > LONGEST_ASKED:
                raise NoAnswer(f"{reason}; it asks to wait for {pause:,.0f} seconds")
            self.pace.hold(pause or 0)
            if number < TRIES - 1:
                self.pace.sleep(PAUSE * 2**number * random.uniform(0.8, 1.2))
        raise NoAnswer(f"{reason}, in the last of {TRIES} tries")

    def _once(self, data: bytes) -> dict:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "prismatic"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        ends = time.monotonic() + TIMEOUT
        try:
            with self.opener.open(urllib.request.Request(self.address, data, headers), timeout=TIMEOUT) as answer:
                content = _read(answer, ends)
        except urllib.error.HTTPError as error:
            with error:
                raise self._problem(error) from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            slow = isinstance(cause, TimeoutError)
            said = f"none within {TIMEOUT:g} seconds" if slow else str(cause) or type(cause).__name__
            raise _Passing(self._clean(said)) from None
        try:
            (choice, *_) = json.loads(content)["choices"]
            if isinstance(choice["message"]["content"], str | None):
                return choice
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        raise _Passing(self._clean(f"it answered 200 with {_shown(content)}, expected JSON of a chat completion"))

    def _problem(self, error: urllib.error.HTTPError) -> Exception:
        """What a status other than 200 means."""
        try:
            content = _read(error, time.monotonic() + TIMEOUT)
        except (OSError, http.client.HTTPException):
            content = b""
        try:
            found = json.loads(content)
            found = found.get("error", found)
            found = found if isinstance(found, dict) else {"message": found}
            message = str(found.get("message") or found)[:500]
        except (ValueError, AttributeError, RecursionError):
            found, message = {}, _shown(content)
        said = self._clean(f"it answered {error.code}: {message}")
        if error.code in OWN_FAULT or (error.code == 403 and LOGPROBS in message.lower()):
            return Refused(said, found.get("param"), found.get("code"))
        if error.code in PASSING or error.code >= 500:
            return _Passing(said, _seconds(error.headers.get("Retry-After")))
        return NoAnswer(said)

    def _clean(self, text: str) -> str:
        """A server's words in one line, without the key, which some repeat."""
        text = " ".join(text.split())
        return text.replace(self.key, f"${KEY}") if self.key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for one server, and no other that it names."""

    def redirect_request(self, *args) -> None:
        return None


def _read(answer, ends: float) -> bytes:
    """What a server sends, if it is not too long and comes in time."""
    content = bytearray()
    while block := answer.read1(1 << 16):
        content += block
        if time.monotonic() > ends:
            raise TimeoutError
        if len(content) > LARGEST:
            raise http.client.HTTPException(f"it sent more than {LARGEST:,} bytes")
    expected = answer.headers.get("Content-Length", "")
    if expected.isdecimal() and len(content) < int(expected):
        raise http.client.HTTPException(f"the connection broke off after {len(content):,} of {expected} bytes")
    return bytes(content)


def _seconds(said: str | None) -> float | None:
    """What a Retry-After header asks for: seconds, or a date."""
    try:
        return max(0.0, float(said)) if said else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def _shown(content: bytes) -> str:
    return ascii(content[:200].decode(errors="replace")) if content.strip() else "nothing"
