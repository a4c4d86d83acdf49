"""Downloads of single files over HTTP, resumed where they stopped, by one process at a time."""

import http.client
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urljoin

from filelock import FileLock, Timeout
from tqdm import tqdm

TRIES = 5  # connections to one server that bring nothing new, one after another
BLOCK = 1 << 20


class FetchError(Exception):
    """A server does not give a file; the message says why."""


def offline() -> bool:
    """Whether `$HF_HUB_OFFLINE` or `$TRANSFORMERS_OFFLINE` says that there is no network."""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked.upper() in ("1", "ON", "YES", "TRUE")


@contextmanager
def alone(lock: Path, waiting: str) -> Iterator[None]:
    """Waits until no other process is inside, and says so once."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def fetch(url: str, path: Path) -> None:
    """Downloads a file, resuming where an earlier attempt stopped if the server still has the same version of it.

    The page on which Google Drive asks whether to download a large file is answered.

    Args:
        url: What to download.
        path: `NAME.unfinished`, to be renamed by the caller; `NAME.version` beside it says which version it is of.

    Raises:
        FetchError: The server cannot be reached, refuses, sends a web page instead, or breaks off again and again.
    """
    idle, most = 0, 0
    with tqdm(desc=path.name.removesuffix(".unfinished"), unit="B", unit_scale=True, unit_divisor=1024) as progress:
        while True:
            have, hopeless = path.stat().st_size if path.exists() else 0, False
            most = max(most, have)
            try:
                if _continue(url, path, progress):
                    return
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                reason = f"answered {error.code} {error.reason}"
                hopeless = error.code < 500 and error.code != 429
            except (OSError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                reason = str(cause) or type(cause).__name__
                hopeless = isinstance(cause, (socket.gaierror, ConnectionRefusedError))
            idle = 0 if path.exists() and path.stat().st_size > most else idle + 1
            if hopeless or idle >= TRIES:
                raise FetchError(reason)
            time.sleep(min(2**idle / 4, 8))


def _continue(url: str, path: Path, progress: tqdm, confirmed: bool = False) -> bool:
    """One connection; whether the file is complete after it."""
    version_path = path.with_suffix(".version")
    have = path.stat().st_size if path.exists() else 0
    version = version_path.read_text() if version_path.exists() else ""
    headers = {"User-Agent": "Mozilla/5.0 (prismatic)", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return True
        path.unlink()
        raise http.client.HTTPException("has fewer bytes than were there, or does not say how many") from None
    with answer:
        if answer.headers.get_content_type() == "text/html":
            page = _Page(answer.read(BLOCK).decode(errors="replace"))
            if confirmed or not (form := page.confirmation(answer.url)):
                raise FetchError(f"sent a web page, not the file{page.shown()}; it may ask for a confirmation")
            return _continue(form, path, progress, confirmed=True)
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity" and not path.name.split(".unfinished")[0].rpartition(".")[0].endswith("gz"):
            raise FetchError(f"sent the file encoded as {encoding[:40]}, though asked for it as it is")
        continued, etag = answer.status == 206, answer.headers.get("ETag", "")
        if continued and not _is_rest(answer, have, version):
            path.unlink(missing_ok=True)
            version_path.unlink(missing_ok=True)
            raise http.client.HTTPException("sent another part or version of the file than was asked for")
        length = answer.headers.get("Content-Length")
        start = have if continued else 0
        total = start + int(length) if length else None
        if total and total - start > shutil.disk_usage(path.parent).free:
            raise FetchError(f"{total - start:,} bytes do not fit on the disk of {path.parent}")
        version_path.write_text(etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", ""))
        progress.total, progress.n, progress.initial = total, start, start
        with path.open("ab" if continued else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                progress.update(len(block))
        return total is None or path.stat().st_size == total


def _is_rest(answer, have: int, version: str) -> bool:
    """Whether a partial answer is what follows the bytes that are there, of the same version of the file."""
    marks = {answer.headers.get("ETag"), answer.headers.get("Last-Modified")} - {None}
    starts = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return bool(have and version) and starts and (not marks or version in marks)


class _Page(HTMLParser):
    """A web page in the place of a file: its title, and the form by which Google Drive lets large files through."""

    def __init__(self, text: str):
        super().__init__()
        self.title, self.action, self.fields, self._in_title = "", "", {}, False
        self.feed(text)

    def confirmation(self, url: str) -> str:
        """The address of the file itself, "" where the page at `url` has no such form."""
        action = urljoin(url, self.action)
        safe = ("https://",) if url.startswith("https://") else ("http://", "https://")
        return f"{action}?{urlencode(self.fields)}" if self.action and action.startswith(safe) else ""

    def shown(self) -> str:
        """Its title in quotes, such as that of a quota which is used up."""
        title = " ".join(self.title.split())[:80]
        return f" ({ascii(title)})" if title else ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action = values.get("action", "")
        elif tag == "input" and self.action and values.get("type") == "hidden" and "name" in values:
            self.fields[values["name"]] = values.get("value", "")
        self._in_title = tag == "title"

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
