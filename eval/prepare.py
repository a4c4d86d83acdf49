"""Fetches what benchmarks need, and checks what is there.

What to fetch, and where it goes below a data root, stands in `downloads.json`. Each entry has `urls` (mirrors of one
file, tried in order) and `to`, a file or folder. An archive is kept as `save` in the folder `archives`; its content,
or its member `from` alone, becomes `to`. A single folder around everything in an archive is left out.
"""

import http.client
import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from eval.archives import unpack
from eval.tasks import get_task
from vision_backbones.files import describe, read_json, write_json

ARCHIVES = "archives"  # folder of a data root with archives, unfinished files and checksums
TRIES = 5  # connections to one server that bring nothing new, one after another
BLOCK = 1 << 20


class FetchError(Exception):
    """A server does not give a file; the message says why."""


def needs(task_name: str) -> list[dict]:
    """Entries of `downloads.json` for a task.

    Raises:
        ValueError: There is no such task, or it says nothing of where its data comes from.
    """
    name = get_task(task_name).name
    known = json.loads(Path(__file__).with_name("downloads.json").read_text())
    if name not in known:
        raise ValueError(
            f"task '{name}' names no downloads: lay its files out as python -m eval list says, then verify"
        )
    entries = known[name]
    return known[entries] if isinstance(entries, str) else entries


def prepare(task_name: str, data_root: Path, entries: list[dict] | None = None) -> int:
    """Downloads and unpacks all that a task needs and that is not there yet; returns the exit status.

    Interrupted downloads are continued, files are checked against the sha256 of their first download (kept in
    `archives/checksums.json`). What cannot be fetched is listed with where to put it, and the status is 1.

    Args:
        task_name: Id of a task.
        data_root: Where data sets lie.
        entries: What to fetch, if not what `downloads.json` says.

    Raises:
        ValueError: The task is unknown, an archive is unsafe or not as expected, or a file has changed.
    """
    entries = needs(task_name) if entries is None else entries
    root = Path(data_root)
    return fetch_all(entries, root, f"python -m eval prepare {task_name} --data_root {root}")


def fetch_all(entries: list[dict], root: Path, again: str) -> int:
    """Downloads and unpacks what is not there yet of some entries, as `prepare` does; returns the exit status.

    Args:
        entries: As in `downloads.json`.
        root: Where data sets lie.
        again: The command that goes on once files were put there by hand.

    Raises:
        ValueError: As `prepare`.
    """
    missed = []
    for entry in entries:
        if any((root / parent / entry["to"]).exists() for parent in ("", "download")):
            print(f"{entry['to']}: there")
            continue
        try:
            _obtain(entry, root)
            print(f"{entry['to']}: done")
        except FetchError as error:
            missed.append((entry, error))
    if missed:
        print(f"\n{len(missed)} of {len(entries)} could not be fetched. By hand, with a browser or on another machine:")
        for entry, error in missed:
            place = root / ARCHIVES / entry["save"] if "save" in entry else root / entry["to"]
            print(f"- {' or '.join(entry['urls'])}: save as {place} ({error})")
        print(f"Then run {again} again.")
    return int(bool(missed))


def _obtain(entry: dict, root: Path) -> None:
    archive = "save" in entry
    name = entry.get("save", entry["to"])
    target = root / ARCHIVES / name if archive else root / entry["to"]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        _fetch_any(entry["urls"], target, root)
    digest = _compared(name, target, root)
    if archive:  # first: what turns out to be no archive leaves no checksum that the right file would be held to
        unpack(target, root / entry["to"], entry.get("from"))
    _record(name, digest, root)


def _fetch_any(urls: list[str], target: Path, root: Path) -> None:
    reasons = []
    for number, url in enumerate(urls):
        unfinished = root / ARCHIVES / f"{target.name}.{number}.unfinished"
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch(url, unfinished)
        except FetchError as error:
            reasons.append(f"{urlsplit(url).hostname}: {error}")
            continue
        unfinished.replace(target)
        unfinished.with_suffix(".version").unlink(missing_ok=True)
        return
    raise FetchError("; ".join(reasons))


def fetch(url: str, path: Path) -> None:
    """Downloads a file, resuming where an earlier attempt stopped if the server still has the same version of it.

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


def _continue(url: str, path: Path, progress: tqdm) -> bool:
    """One connection; whether the file is complete after it."""
    version_path = path.with_suffix(".version")
    have = path.stat().st_size if path.exists() else 0
    version = version_path.read_text() if version_path.exists() else ""
    headers = {"User-Agent": "Mozilla/5.0 (python -m eval prepare)", "Accept-Encoding": "identity"}
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
            raise FetchError("sent a web page, not the file; it may ask for a confirmation")
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
        progress.total, progress.n = total, start
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


def check_sum(name: str, path: Path, root: Path) -> None:
    """Compares a file with the sha256 of its first download, or records it.

    Raises:
        ValueError: It is another one.
    """
    _record(name, _compared(name, path, root), root)


def _recorded(root: Path) -> dict[str, str]:
    path = root / ARCHIVES / "checksums.json"
    return read_json(path, "delete it to accept files as they are") if path.exists() else {}


def _compared(name: str, path: Path, root: Path) -> str:
    """The sha256 of a file, which is that of its first download if that is recorded."""
    digest = describe(path)["sha256"]
    expected = _recorded(root).get(name, digest)
    if digest != expected:
        raise ValueError(
            f"{path} has sha256 {digest}, expected {expected} of the first one: delete it to fetch it again, "
            f"or delete the line '{name}' of {root / ARCHIVES / 'checksums.json'} if the new file is right"
        )
    return digest


def _record(name: str, digest: str, root: Path) -> None:
    (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
    write_json(root / ARCHIVES / "checksums.json", _recorded(root) | {name: digest})


def verify(task_name: str, data_root: Path) -> int:
    """Prints what is there for every split of a task and what is wrong with it; returns the exit status.

    Checked are files, numbers of examples, missing images, and checksums of the files that were downloaded. Only the
    default split has to be there.
    """
    from eval.data.readers import MissingData
    from eval.data.selection import check_counts, check_images

    root, default = Path(data_root), get_task(task_name)
    problems = 0
    for split in default.num_examples:
        task = get_task(f"{default.name}:{split}")
        try:
            examples = task.read(root, split)
        except MissingData as error:
            problems += split == default.split
            print(f"{task.name}:{split}: {error if split == default.split else 'not there'}")
            continue
        except ValueError as error:
            problems += 1
            print(error)
            continue
        print(f"{task.name}:{split}: {len(examples):,} examples, {len({e.image for e in examples}):,} images")
        for check in (lambda: check_counts(task, examples), lambda: check_images(task, examples, root)):  # noqa: B023
            try:
                check()
            except ValueError as error:
                problems += 1
                print(error)
    recorded = _recorded(root)
    for name in recorded.keys() & {entry.get("save", entry["to"]) for entry in _entries_or_none(default.name)}:
        for path in (root / ARCHIVES / name, root / name):
            if path.is_file() and describe(path)["sha256"] != recorded[name]:
                problems += 1
                print(f"{path} has changed since its download: delete it and run python -m eval prepare {default.name}")
    return int(bool(problems))


def _entries_or_none(name: str) -> list[dict]:
    try:
        return needs(name)
    except ValueError:
        return []
