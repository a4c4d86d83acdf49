"""Folders of data sets of the hub, from a server on this machine that answers as the hub does."""

import json
from urllib.parse import quote

import pytest
from hub_server import COMMIT, hub_server
from spatial_files import WRITERS

from eval.prepare import prepare, verify
from eval.tasks import get_task

API = "/api/datasets/MMVP/MMVP"
ENTRY = {"to": "mmvp", "hub": "MMVP/MMVP", "files": ["Questions.csv", "MMVP Images/*.jpg"]}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as running:
        yield running


def publish(hub, files: dict[str, bytes]) -> None:
    """Has the hub hold a data set of these files."""
    listed = [{"type": "file", "path": name, "size": len(content), "oid": COMMIT} for name, content in files.items()]
    hub.files[f"{API}/revision/main"] = json.dumps({"id": "MMVP/MMVP", "sha": COMMIT, "siblings": []}).encode()
    hub.files[f"{API}/tree/{COMMIT}?recursive=true&expand=false"] = json.dumps(listed).encode()
    hub.files |= {f"/datasets/MMVP/MMVP/resolve/{COMMIT}/{quote(name)}": content for name, content in files.items()}


def test_a_folder_is_brought_to_what_the_hub_has(hub, tmp_path, capsys):
    WRITERS["mmvp"](tmp_path / "there")
    folder = tmp_path / "there/mmvp"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    publish(hub, files | {"README.md": b"not asked for", "MMVP Images/notes.txt": b"nor this"})
    root = tmp_path / "root"
    assert prepare("mmvp", root, [ENTRY]) == 0, capsys.readouterr().out
    written = {p.relative_to(root / "mmvp").as_posix() for p in (root / "mmvp").rglob("*.*") if ".cache" not in p.parts}
    assert written == files.keys()
    assert get_task("mmvp").read(root, "test") == get_task("mmvp").read(tmp_path / "there", "test")
    (root / "mmvp/MMVP Images/3.jpg").unlink()
    assert verify("mmvp", root) == 1 and "1 of 4 images are missing" in " ".join(capsys.readouterr().out.split())
    fetched = [path for path, _ in hub.asked if path.endswith("1.jpg") and not path.startswith("HEAD")]
    assert prepare("mmvp", root, [ENTRY]) == 0 and (root / "mmvp/MMVP Images/3.jpg").is_file()
    again = [path for path, _ in hub.asked if path.endswith("1.jpg") and not path.startswith("HEAD")]
    assert again == fetched, "what is there is not fetched again"


def test_what_cannot_be_fetched_is_told_with_its_place(hub, tmp_path, capsys):
    assert prepare("mmvp", tmp_path, [ENTRY]) == 1
    said, page = capsys.readouterr().out, "https://huggingface.co/datasets/MMVP/MMVP/tree/main"
    assert f"Questions.csv, MMVP Images/*.jpg of {page}: save below {tmp_path / 'mmvp'}, with their folders" in said
    assert f"Then run python -m eval prepare mmvp --data_root {tmp_path} again." in said
    WRITERS["mmvp"](tmp_path)
    assert prepare("mmvp", tmp_path, [ENTRY]) == 0, "what was put there by hand is used"
