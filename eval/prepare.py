"""Fetches what benchmarks and patch probing need, and checks what is there.

What to fetch, and where it goes below a data root, stands in `downloads.json`. Each entry has `urls` (mirrors of one
file, tried in order) and `to`, a file or folder. An archive is kept as `save` in the folder `archives`; its content,
or its member `from` alone, becomes `to`. A single folder around everything in an archive is left out. Instead of `urls`
there may be `hub`, a data set of the Hugging Face hub of which `files` (patterns) are fetched into `to`.
"""

import json
import re
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from eval.archives import unpack
from eval.tasks import get_task, list_tasks
from vision_backbones.downloads import FetchError, fetch
from vision_backbones.files import describe, read_json, write_json
from vision_backbones.names import suggest

ARCHIVES = "archives"  # folder of a data root with archives, unfinished files and checksums
PROBED = {"coco": "coco", "coco-things": "coco", "ade20k": "ade20k"}  # data sets of patch probing, their folders


def needs(name: str) -> list[dict]:
    """Entries of `downloads.json` for a task, or for a data set of patch probing.

    Raises:
        ValueError: There is no such task or data set, or it says nothing of where its data comes from.
    """
    name = _known(name)
    known = json.loads(Path(__file__).with_name("downloads.json").read_text())
    if name not in known:
        raise ValueError(
            f"task '{name}' names no downloads: lay its files out as python -m eval list says, then verify"
        )
    entries = known[name]
    return known[entries] if isinstance(entries, str) else entries


def _known(name: str) -> str:
    """The name of a data set of patch probing, or of a task without its split."""
    if name in PROBED:
        return name
    known = [*PROBED, *(task.name for task in list_tasks())]
    if re.split("[:+]", name)[0] not in known:
        raise ValueError(f"unknown task or data set '{name}': {suggest(name, known)}")
    return get_task(name).name


def prepare(name: str, data_root: Path, entries: list[dict] | None = None) -> int:
    """Downloads and unpacks all that a task or data set needs and that is not there yet; returns the exit status.

    Interrupted downloads are continued, files are checked against the sha256 of their first download (kept in
    `archives/checksums.json`). What cannot be fetched is listed with where to put it, and the status is 1.

    Args:
        name: Id of a task, or one of `PROBED`.
        data_root: Where data sets lie.
        entries: What to fetch, if not what `downloads.json` says.

    Raises:
        ValueError: The name is unknown, an archive is unsafe or not as expected, or a file has changed.
    """
    entries = needs(name) if entries is None else entries
    root = Path(data_root)
    status = fetch_all(entries, root, f"python -m eval prepare {name} --data_root {root}")
    if not status and name in PROBED:
        print(f"prismatic probe --dataset {name} --data_root {root / PROBED[name]}")
    return status


def fetch_all(entries: list[dict], root: Path, again: str) -> int:
    """Downloads and unpacks what is not there yet of some entries, as `prepare` does; returns the exit status.

    Args:
        entries: As in `downloads.json`.
        root: Where data sets lie.
        again: The command that goes on once files were put there by hand.

    Raises:
        ValueError: As `prepare`.
    """
    missed: dict[Path, str] = {}  # by where a file belongs: several entries may come out of one archive
    for entry in entries:
        if "hub" in entry:
            if problem := _obtain_from_hub(entry, root):
                missed[root / entry["to"]] = problem
            continue
        if any((root / parent / entry["to"]).exists() for parent in ("", "download")):
            print(f"{entry['to']}: there")
            continue
        try:
            _obtain(entry, root)
            print(f"{entry['to']}: done")
        except FetchError as error:
            place = root / ARCHIVES / entry["save"] if "save" in entry else root / entry["to"]
            missed[place] = f"- {' or '.join(entry['urls'])}: save as {place} ({error})"
    if missed:
        files = len({entry.get("save", entry["to"]) for entry in entries})
        print(f"\n{len(missed)} of {files} could not be fetched. By hand, with a browser or on another machine:")
        print("\n".join(missed.values()))
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


def _obtain_from_hub(entry: dict, root: Path) -> str | None:
    """Brings a folder to what the hub has of a data set; returns what is to be done by hand where that fails."""
    from huggingface_hub import snapshot_download

    folder, reason = root / entry["to"], "it has no such files"
    try:
        snapshot_download(entry["hub"], repo_type="dataset", allow_patterns=entry["files"], local_dir=folder)
    except Exception as error:  # the library raises its own, those of its client, OSError, ValueError, ...
        reason = " ".join(str(error).split())[:200]
    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    lacking = [pattern for pattern in entry["files"] if not any(fnmatch(name, pattern) for name in there)]
    if not lacking:
        print(f"{entry['to']}: there")
        return None
    return (
        f"- {', '.join(lacking)} of https://huggingface.co/datasets/{entry['hub']}/tree/main: save below {folder}, "
        f"with their folders ({reason})"
    )


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


def verify(name: str, data_root: Path) -> int:
    """Prints what is there for every split of a task and what is wrong with it; returns the exit status.

    Checked are files, numbers of examples, missing images, and checksums of the files that were downloaded. Only the
    default split has to be there. Of a data set of patch probing, every image and label map is decoded.
    """
    root = Path(data_root)
    problems = _wrong_pairs(name, root) if name in PROBED else _wrong_splits(name, root)
    recorded, name = _recorded(root), _known(name)
    for file in recorded.keys() & {entry.get("save", entry["to"]) for entry in _entries_or_none(name)}:
        for path in (root / ARCHIVES / file, root / file):
            if path.is_file() and describe(path)["sha256"] != recorded[file]:
                problems += 1
                print(f"{path} has changed since its download: delete it and run python -m eval prepare {name}")
    return int(bool(problems))


def _wrong_pairs(name: str, root: Path) -> int:
    """Prints all that is wrong with images and label maps; returns how many problems there are."""
    from eval.probing.data import find_root, get_dataset, problems

    dataset = get_dataset(name)
    found = list(problems(dataset, find_root(dataset, str(root / PROBED[name]))))
    print("\n".join([*found, f"{name}: {len(found):,} problems"]))
    return len(found)


def _wrong_splits(name: str, root: Path) -> int:
    """Prints what is there of a task; returns how many problems there are."""
    from eval.data.readers import MissingData
    from eval.data.selection import check_counts, check_images

    default, problems = get_task(name), 0
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
        images = {image for example in examples for image in example.images}
        print(f"{task.name}:{split}: {len(examples):,} examples, {len(images):,} images")
        for check in (partial(check_counts, task, examples, root=root), partial(check_images, task, examples, root)):
            try:
                check()
            except ValueError as error:
                problems += 1
                print(error)
    return problems


def _entries_or_none(name: str) -> list[dict]:
    try:
        return needs(name)
    except ValueError:
        return []
