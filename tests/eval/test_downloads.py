"""Downloads from a server on this machine that knows ranges, breaks off, changes its files and lies."""

import functools
import io
import json
import tarfile

import pytest
from evaluation_folders import zipped
from file_server import file_server

from eval.prepare import ARCHIVES, check_sum, needs, prepare, verify
from eval.tasks import list_tasks
from prismatic.miniature.benchmarks import write_benchmarks
from vision_backbones import downloads
from vision_backbones.files import describe


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with file_server() as running:
        yield running


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    content = bytes(range(256)) * 5000
    server.files["/questions.json"] = content
    server.breaks["/questions.json"] = [300_000, 5, 0, 200_000]
    entry = {"to": "vsr/test.jsonl", "urls": [f"{server.url}/questions.json"]}
    assert prepare("vsr", tmp_path, [entry]) == 0
    assert (tmp_path / "vsr/test.jsonl").read_bytes() == content
    starts = [asked for _, asked in server.asked]
    assert starts == [None, "bytes=300000-", "bytes=300005-", "bytes=300005-", "bytes=500005-"]
    assert [p.name for p in (tmp_path / ARCHIVES).iterdir()] == ["checksums.json"]
    assert prepare("vsr", tmp_path, [entry]) == 0 and len(server.asked) == 5, "what is there is not fetched again"


def test_a_download_that_was_killed_goes_on(server, tmp_path, monkeypatch):
    content = b"0123456789" * 50_000
    server.files["/a.zip"], server.breaks["/a.zip"] = content, [123_456]
    unfinished = tmp_path / "a.unfinished"
    monkeypatch.setattr(downloads.time, "sleep", functools.partial(_raise, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        downloads.fetch(f"{server.url}/a.zip", unfinished)
    assert unfinished.stat().st_size == 123_456
    downloads.fetch(f"{server.url}/a.zip", unfinished)
    assert unfinished.read_bytes() == content and server.asked[-1][1] == "bytes=123456-"
    downloads.fetch(f"{server.url}/a.zip", unfinished)  # complete, but not yet moved: the server says so
    assert unfinished.read_bytes() == content

    server.files["/a.zip"], server.breaks["/a.zip"] = b"new" * 100_000, []
    unfinished.write_bytes(content[:1000])
    downloads.fetch(f"{server.url}/a.zip", unfinished)
    assert unfinished.read_bytes() == b"new" * 100_000, "pieces of two versions are never joined"


def _raise(error, *_):
    raise error


def test_archives_take_their_place(server, tmp_path):
    server.files["/val2014.zip"] = zipped({"val2014/1.jpg": b"one", "val2014/2.jpg": b"two", "__MACOSX/._1.jpg": b""})
    server.files["/q.zip"] = zipped({"deep/q_mscoco.json": b"{}", "deep/other.json": b"[]"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("OCID-dataset/ARID10/a.png", "OCID-dataset/YCB10/b.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"png"))
        link = tarfile.TarInfo("OCID-dataset/YCB10/c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../ARID10/a.png"
        archive.addfile(link)
    server.files["/download"] = buffer.getvalue()
    entries = [
        {"to": "vqa-v2/images_val2014", "save": "val2014.zip", "urls": [f"{server.url}/val2014.zip"]},
        {"to": "pope/val_images", "save": "val2014.zip", "urls": [f"{server.url}/val2014.zip"]},
        {"to": "vqa-v2/q.json", "from": "q_mscoco.json", "save": "q.zip", "urls": [f"{server.url}/q.zip"]},
        {"to": "ocid-ref/OCID-dataset", "save": "OCID.tar.gz", "urls": [f"{server.url}/download"]},
    ]
    assert prepare("vqav2", tmp_path, entries) == 0
    for place in ("vqa-v2/images_val2014", "pope/val_images"):
        assert {p.name: p.read_bytes() for p in (tmp_path / place).iterdir()} == {"1.jpg": b"one", "2.jpg": b"two"}
    assert (tmp_path / "vqa-v2/q.json").read_bytes() == b"{}"
    assert (tmp_path / "ocid-ref/OCID-dataset/YCB10/c.png").read_bytes() == b"png", "a link within is copied"
    assert not (tmp_path / "ocid-ref/OCID-dataset/YCB10/c.png").is_symlink()
    assert [path for path, _ in server.asked].count("/val2014.zip") == 1, "two tasks share an archive"


def test_mirrors_and_what_is_left_to_do_by_hand(server, tmp_path, capsys):
    server.files["/refcoco.zip"] = zipped({"refcoco/instances.json": b"{}"})
    server.files["/page"], server.types["/page"] = b"<html>confirm</html>", "text/html; charset=utf-8"
    good = {
        "to": "refcoco/refcoco",
        "save": "refcoco.zip",
        "urls": [f"{server.url}/gone.zip", f"{server.url}/refcoco.zip"],
    }
    page = {"to": "ocid-ref/val_expressions.json", "urls": [f"{server.url}/page"]}
    silent = {"to": "ocid-ref/OCID-dataset", "save": "OCID.tar.gz", "urls": ["http://127.0.0.1:9/OCID.tar.gz"]}
    assert prepare("ocid-ref", tmp_path, [good, page, silent]) == 1
    said = capsys.readouterr().out
    assert "2 of 3 could not be fetched" in said and "web page" in said and "refused" in said.lower()
    assert f"save as {tmp_path / 'ocid-ref/val_expressions.json'}" in said
    assert f"save as {tmp_path / ARCHIVES / 'OCID.tar.gz'}" in said and page["urls"][0] in said
    assert (tmp_path / "refcoco/refcoco/instances.json").exists()
    (tmp_path / "ocid-ref").mkdir(exist_ok=True)
    (tmp_path / "ocid-ref/val_expressions.json").write_text("{}")
    (tmp_path / ARCHIVES / "OCID.tar.gz").write_bytes(zipped({"top/ARID10/a.png": b""}))
    assert prepare("ocid-ref", tmp_path, [good, page, silent]) == 0, "what was saved by hand is used"
    assert (tmp_path / "ocid-ref/OCID-dataset/ARID10/a.png").exists()


def test_a_changed_file_is_refused(server, tmp_path):
    server.files["/rows.jsonl"] = b"first"
    entry = {"to": "vsr/test.jsonl", "urls": [f"{server.url}/rows.jsonl"]}
    assert prepare("vsr", tmp_path, [entry]) == 0
    recorded = json.loads((tmp_path / ARCHIVES / "checksums.json").read_text())
    assert recorded == {"vsr/test.jsonl": describe(tmp_path / "vsr/test.jsonl")["sha256"]}
    (tmp_path / "vsr/test.jsonl").unlink()
    server.files["/rows.jsonl"] = b"other"
    with pytest.raises(ValueError, match="expected a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"):
        prepare("vsr", tmp_path, [entry])


def test_a_web_page_under_an_archive_s_name_does_not_become_what_is_expected(server, tmp_path):
    server.files["/a.zip"] = b"<!doctype html><p>Please sign in</p>"
    entry = {"to": "vsr/images", "save": "vsr_images.zip", "urls": [f"{server.url}/a.zip"]}
    with pytest.raises(ValueError, match="neither a zip nor a tar file: delete it and fetch it again"):
        prepare("vsr", tmp_path, [entry])
    (tmp_path / ARCHIVES / "vsr_images.zip").unlink()
    server.files["/a.zip"] = zipped({"images/1.jpg": b"one"})
    assert prepare("vsr", tmp_path, [entry]) == 0 and (tmp_path / "vsr/images/1.jpg").read_bytes() == b"one"


SIZE = 300_000


def rest(start, mark='"v1"', first=None, body=None, total=SIZE):
    headers = {"ETag": mark, "Content-Range": f"bytes {start if first is None else first}-{total - 1}/{total}"}
    return 206, headers | {"Content-Length": str(len(body))}, body


def broken(content):
    return 200, {"ETag": '"v1"', "Content-Length": str(len(content))}, content[: SIZE // 3]


@pytest.mark.parametrize(
    ("continued", "reason"),
    [
        (lambda at, content: rest(at, '"v2"', body=content[::-1][at:]), "another part or version"),
        (lambda at, content: rest(at, first=0, body=content[: SIZE - at]), "another part or version"),
        (lambda at, content: rest(at, first=at + 5, body=content[at + 5 :]), "another part or version"),
        (lambda at, content: (416, {"Content-Range": "bytes */*"}, b""), "fewer bytes"),
        (lambda at, content: (416, {}, b""), "fewer bytes"),
        (lambda at, content: (200, {"ETag": '"v1"', "Content-Length": str(SIZE)}, content[:10]), "broke off"),
    ],
    ids=["another version", "from the start", "with a gap", "416 of unknown length", "bare 416", "less each time"],
)
def test_a_server_that_lies_is_given_up_and_nothing_is_kept(server, tmp_path, continued, reason):
    content = bytes(range(256)) * (SIZE // 256 + 1)
    server.files["/a"] = content = content[:SIZE]
    server.lies["/a"] = lambda asked, content: continued(int(asked[6:-1]), content) if asked else broken(content)
    path = tmp_path / "a.0.unfinished"
    with pytest.raises(downloads.FetchError, match=reason):
        downloads.fetch(f"{server.url}/a", path)
    assert len(server.asked) <= 3 * downloads.TRIES
    assert not path.exists() or content.startswith(path.read_bytes())


def test_answers_that_nobody_asked_for(server, tmp_path):
    server.files |= {"/part": b"x" * 100, "/packed": b"x" * 100, "/a.tar.gz": b"x" * 100}
    server.lies["/part"] = lambda asked, content: rest(50, body=content[50:], total=100)
    server.lies["/packed"] = lambda asked, content: (200, {"Content-Encoding": "gzip"}, content)
    server.lies["/a.tar.gz"] = lambda asked, content: (200, {"Content-Encoding": "x-gzip"}, content)
    with pytest.raises(downloads.FetchError, match="another part or version"):
        downloads.fetch(f"{server.url}/part", tmp_path / "part.0.unfinished")
    with pytest.raises(downloads.FetchError, match="encoded as gzip, though asked for it as it is"):
        downloads.fetch(f"{server.url}/packed", tmp_path / "packed.0.unfinished")
    downloads.fetch(f"{server.url}/a.tar.gz", tmp_path / "a.tar.gz.0.unfinished")
    assert (tmp_path / "a.tar.gz.0.unfinished").read_bytes() == b"x" * 100


def test_every_shipped_task_says_where_its_data_is():
    for task in list_tasks():
        entries = needs(task.name)
        assert entries and all(e["to"] and set(e) <= {"urls", "to", "save", "from", "hub", "files"} for e in entries)
        for entry in entries:
            assert set(entry) == {"to", "hub", "files"} or entry["urls"]
            assert ("from" not in entry or "save" in entry) and all(u.startswith("http") for u in entry.get("urls", ()))
            folder = entry["to"].split("/")[0]
            assert any(file.startswith(folder) for file in task.files), (task.name, entry["to"])
    with pytest.raises(ValueError, match="did you mean"):
        needs("refcocco")


def test_verify_says_what_is_wrong(tmp_path, capsys):
    root = write_benchmarks(tmp_path / "root", 4)
    assert verify("vsr", root) == 1
    said = capsys.readouterr().out
    assert "examples, 3 images" in said and "does not have the official number" in said and "missing" not in said
    (root / "vsr/images/000000500003.jpg").unlink()
    assert verify("vsr", root) == 1 and "1 of 3 images are missing" in capsys.readouterr().out
    assert verify("gqa", root) == 1 and "found no" in capsys.readouterr().out
    check_sum("vsr/test.jsonl", root / "vsr/test.jsonl", root)
    (root / "vsr/test.jsonl").write_text((root / "vsr/test.jsonl").read_text() + "\n")
    assert verify("vsr", root) == 1 and "has changed since its download" in capsys.readouterr().out
