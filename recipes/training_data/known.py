"""The training data sets that are known by name, and what of them is on disk.

`data_sets.json` says of each `annotations` (its LLaVA json), `rows` (a number, or "888k" where only thousands are
known), `files` (as in the evaluation's `downloads.json`, with `gb` where the size is known), `licence`, a named `model`
that is trained on it, and the `stage` of that. A `mix` is made of the rows of other data sets or `parts`. Of files,
`to_jpg` converts images of other formats, and `spread` moves what a folder holds beside it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from eval.prepare import ARCHIVES
from vision_backbones.files import read_json, write_json
from vision_backbones.names import suggest

READY = "ready.json"  # in `ARCHIVES`: what `prepare` has checked
Table = dict[str, dict[str, Any]]


def read_table() -> Table:
    """The content of `data_sets.json`."""
    return json.loads(Path(__file__).with_name("data_sets.json").read_text())


def find(name: str, table: Table) -> dict[str, Any]:
    """What is known of a data set.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in table["data_sets"]:
        raise ValueError(f"unknown data set {name!r}: {suggest(name, table['data_sets'])}")
    return table["data_sets"][name]


def files_of(name: str, table: Table) -> list[dict]:
    """All that is downloaded for a data set or part, its own files and those of what it is mixed from."""
    entry = {**table["parts"], **table["data_sets"]}[name]
    files = [file for other in entry.get("mix", ()) for file in files_of(other, table)]
    return files + [file for file in entry["files"] if file not in files]


def is_there(file: dict, root: Path) -> bool:
    """Whether a file, or what an archive unpacks to, is there; folders that were spread leave none of their name."""
    place = root / file["to"]
    if file.get("spread") and not place.exists():
        return place.parent.is_dir() and any(path.is_dir() and path.name[0] != "." for path in place.parent.iterdir())
    return place.exists()


def state(name: str, root: Path, table: Table) -> str:
    """`ready` once `prepare` has checked a data set that is still there, else `nothing` or `partly`."""
    there = [is_there(file, root) for file in files_of(name, table)]
    made = (root / find(name, table)["annotations"]).is_file()
    if made and all(there) and name in _checked(root):
        return "ready"
    return "partly" if made or any(there) else "nothing"


def mark_ready(name: str, rows: int, root: Path) -> None:
    """Notes that a data set was checked."""
    (root / ARCHIVES).mkdir(parents=True, exist_ok=True)
    write_json(root / ARCHIVES / READY, _checked(root) | {name: {"rows": rows}})


def _checked(root: Path) -> dict[str, Any]:
    path = root / ARCHIVES / READY
    return read_json(path, "delete it, and prepare checks again") if path.exists() else {}


def listed(root: Path, table: Table) -> str:
    """A table of the data sets: rows, what is downloaded for them, and what is below `root`; then what they are."""
    from vision_backbones.table import table as aligned

    rows = [
        [name, str(entry["rows"]) if isinstance(entry["rows"], str) else f"{entry['rows']:,}", _size(name, table),
         state(name, root, table)]
        for name, entry in table["data_sets"].items()
    ]  # fmt: skip
    lines = [aligned(rows, ["name", "rows", "download", f"below {root}"])]
    for name, entry in table["data_sets"].items():
        lines += ["", f"{name}: {entry['about']}", f"  licence: {entry['licence']}"]
    notes = "Sizes are about right; + stands for files whose size is not known. Licences are as their hosts state them."
    return "\n".join([*lines, "", notes])


def _size(name: str, table: Table) -> str:
    files = files_of(name, table)
    return f"{sum(file.get('gb', 0) for file in files):,.1f} GB{'' if all('gb' in file for file in files) else '+'}"


def check_room(missing: list[dict], root: Path) -> None:
    """Raises ValueError where the disk has no room for what is missing: archives and, beside them, what they hold."""
    packed = sum(file.get("gb", 0) * 1e9 for file in missing)
    names = [Path(file.get("save", file["to"])).name for file in missing]
    have = sum(path.stat().st_size for name in names for path in (root / ARCHIVES).glob(f"{name}*"))
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if 2 * packed - have > free:
        raise ValueError(
            f"{len(missing)} files are missing, for which about {(2 * packed - have) / 1e9:,.1f} GB are needed, packed "
            f"and unpacked; {root} has room for {free / 1e9:,.1f} GB: make room, or give another --data_root"
        )
