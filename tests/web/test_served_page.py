"""The page without a browser: what it serves, what it refuses, what it leaves behind."""

import http.client
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_cases import ROOT
from image_bombs import bomb
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the page needs gradio: make .venv/app")
import httpx  # noqa: E402 -- comes with gradio

from recipes.app import main  # noqa: E402
from recipes.config.app import parse_app  # noqa: E402
from recipes.web.shared import read_picture, safe_image  # noqa: E402


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "secret.txt"
    path.write_text("the secret")
    return path


@pytest.fixture(scope="module")
def url(serve, engines, scenes, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    (root / "a-run").mkdir()
    (root / "a-run" / "config.yaml").write_text("seed: 1\n")
    return serve({"miniature": engines["miniature"]}, scenes, root=root)


def call(url, function, data):
    """What a handler of the page answers to anyone, by gradio's queue; raises for one that is refused."""
    with httpx.Client(base_url=url, timeout=30) as client:
        session = os.urandom(6).hex()
        body = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": None, "event_data": None}
        client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    event = json.loads(line[5:])
                    if event["msg"] == "process_completed":
                        return event


def upload(url, content, name="a.png"):
    return httpx.post(f"{url}/gradio_api/upload", files={"files": (name, content)}, timeout=60)


@pytest.mark.parametrize("path", ["{secret}", "../../../../../../{secret}", "..%2f..%2f..{secret}", "/etc/passwd", "file://{secret}",
                                  "setup.py", "{root}/setup.py", "{root}/.git/config", "~/.bashrc"])  # fmt: skip
def test_files_of_the_machine_are_not_served(url, secret, path):
    path = path.format(secret=secret, root=ROOT)
    for route in (
        "gradio_api/file=",
        "file=",
        "gradio_api/file/",
        "static/",
        "assets/",
        "theme.css?/",
        "gradio_api/stream/x/x/x/",
    ):
        found = httpx.get(f"{url}/{route}{path}", timeout=30)
        assert found.status_code >= 400 or b"the secret" not in found.content and b"root:x" not in found.content
        assert b"setuptools" not in found.content and b"[core]" not in found.content


def test_raw_paths_with_dots(url, secret):
    host = url.split("/")[2]
    for path in (f"/gradio_api/file=/tmp/../{secret}", f"/assets/../../../../../../../..{secret}", f"/..{secret}"):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("GET", path)
        assert b"the secret" not in connection.getresponse().read()
        connection.close()


def picture_handlers(url):
    """Numbers of the handlers that take the picture of the chat."""
    config = httpx.get(f"{url}/config", timeout=30).json()
    ids = {c["id"] for c in config["components"] if c["props"].get("elem_id") in ("picture", "where-picture")}
    return config, [f for f in config["dependencies"] if ids & set(f["inputs"])], ids


@pytest.mark.parametrize(
    "where",
    [
        "{secret}",
        "http://127.0.0.1:9/x.png",
        pytest.param("/etc/passwd", marks=pytest.mark.slow),
        pytest.param("data:text/plain,hello", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_the_machine_is_not_taken_for_a_picture(url, secret, where):
    config, handlers, ids = picture_handlers(url)
    assert len(handlers) >= 4
    for handler in handlers:
        path = where.format(secret=secret)
        data = [
            {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}} if i in ids else None
            for i in handler["inputs"]
        ]
        event = call(url, handler["id"], data)
        assert event["success"] is False, handler
        assert "the secret" not in json.dumps(event)


@pytest.mark.parametrize("names", [["../private"], ["/etc"], ["a-run/../../x"], [{"a": 1}], "a-run", 3, [None]])
def test_runs_that_are_not_there_are_nothing(url, names, tmp_path):
    config = httpx.get(f"{url}/config", timeout=30).json()
    label = {c["id"]: c["props"].get("label") for c in config["components"]}
    (chosen,) = [i for i in label if label[i] == "Show these runs"]
    for handler in (f for f in config["dependencies"] if chosen in f["inputs"]):
        event = call(url, handler["id"], [names if i == chosen else None for i in handler["inputs"]])
        text = json.dumps(event)
        assert "root:x" not in text and "Traceback" not in text


def gif_bomb(frames=50_000):
    """A small file of that many frames."""
    file = io.BytesIO()
    Image.new("P", (1000, 1000)).save(file, "GIF")
    content = file.getvalue()
    frame = content[content.index(b"\x2c") : -1]
    return content[: content.index(b"\x2c")] + frame * frames + b"\x3b"


@pytest.mark.parametrize("kind", ["png", "text", "half", "svg", "eps", "huge"])
def test_what_is_no_picture_is_refused_in_a_line(kind, tmp_path):
    path = tmp_path / "upload.png"
    if kind == "png":
        path.write_bytes(bomb())
    elif kind == "half":
        file = io.BytesIO()
        Image.effect_noise((200, 200), 50).save(file, "PNG")
        path.write_bytes(file.getvalue()[:5000])
    elif kind == "huge":
        Image.new("1", (9000, 8000)).save(path)
    else:
        path.write_bytes(
            {"text": b"hello", "svg": b"<svg onload='alert(1)'/>", "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n"}[kind]
        )
    with pytest.raises(gradio.Error, match="pixels|is refused") as error:
        read_picture(path)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_a_gif_bomb_costs_one_frame(tmp_path):
    path = tmp_path / "bomb.gif"
    path.write_bytes(gif_bomb())
    started = time.process_time()
    assert read_picture(path).size == (1000, 1000)
    assert time.process_time() - started < 5


def test_pictures_are_taken_upright_and_without_loss(tmp_path):
    noise = Image.effect_noise((30, 20), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise.save(tmp_path / "turned.png", exif=exif)
    read = read_picture(tmp_path / "turned.png")
    assert read.size == (20, 30) and read.tobytes() == noise.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert safe_image().format == "png"


def test_a_gigabyte_is_refused_before_it_is_held(url):
    """Sent piece by piece, without saying how long it is: neither memory nor disk hold it."""

    def pieces():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(1024):
            yield b"\0" * (1 << 20)
        yield b"\r\n--b--\r\n"

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{url}/gradio_api/upload", content=pieces(), timeout=60, headers=headers)
    assert answer.status_code == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    left = sum(f.stat().st_size for f in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if f.is_file())
    assert left < 100e6


@pytest.mark.parametrize(
    "name", ["../../../../evil.png", "<script>alert(1)</script>.png", "a\r\nSet-Cookie: x=1.png", "x" * 5000]
)
def test_names_of_uploads_lead_nowhere(url, name, tmp_path):
    answer = upload(url, b"hello", name)
    if answer.status_code == 200:
        (path,) = answer.json()
        assert Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve())
        assert "<" not in path and "\n" not in path
        shown = httpx.get(f"{url}/gradio_api/file={path}", timeout=30)
        assert (
            "html" not in shown.headers.get("content-type", "") or "attachment" in shown.headers["content-disposition"]
        )
    assert not Path("/evil.png").exists()


def test_an_uploaded_page_is_not_shown_as_one(url):
    (path,) = upload(url, b"<script>alert(1)</script>", "a.html").json()
    shown = httpx.get(f"{url}/gradio_api/file={path}", timeout=30)
    assert "attachment" in shown.headers.get("content-disposition", "")
    (path,) = upload(url, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "a.svg").json()
    shown = httpx.get(f"{url}/gradio_api/file={path}", timeout=30)
    assert "attachment" in shown.headers.get("content-disposition", "")


def test_many_files_at_once_are_too_much(url, monkeypatch):
    files = [("files", (f"{number}.png", b"\0" * 4_000_000)) for number in range(8)]
    assert httpx.post(f"{url}/gradio_api/upload", files=files, timeout=60).status_code == 413
    monkeypatch.setattr("recipes.web.limits.MOST_IN_ALL", -1)
    assert upload(url, b"hello").status_code == 507


def test_no_other_name_leads_to_the_page(url):
    assert httpx.get(f"{url}/config", headers={"Host": "evil.example"}, timeout=30).status_code == 400


def test_a_page_for_others_shows_what_is_on_its_lists_alone(engines, scenes, tmp_path):
    from recipes.web.page import build_page

    page = build_page(
        {"miniature": engines["miniature"]}, scenes, [], backbones=["miniature"], probes=[], run_root=tmp_path,
        others=False,
    )  # fmt: skip
    free = {
        block.label: block.allow_custom_value for block in page.blocks.values() if hasattr(block, "allow_custom_value")
    }
    assert not any(free[label] for label in ("Backbone", "Second backbone", "Probe"))
    (show,) = {f.fn for f in page.fns.values() if f.fn and f.fn.__name__ == "refresh"}
    with pytest.raises(gradio.Error, match="choose backbones and probes from the lists"):
        show("probe", Image.new("RGB", (48, 48)), "miniature", "none", "/etc", 1, 1, [])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--backbones", "minature"], "--backbones: .*did you mean miniature"),
        (["--probes", "{folder}"], "holds no head.json of a finished probe"),
        (["--run_root", "{file}"], "is no folder"),
        (["--images", "{folder}"], "holds no pictures"),
        (["--images", "{bad}"], "holds no pictures"),
        (["--compare", "nope"], "nope"),
    ],
)
def test_mistakes_show_before_the_page(argv, said, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no picture")
    names = {"folder": tmp_path, "file": bad / "a.png", "bad": bad}
    with pytest.raises(ValueError, match=said):
        main(parse_app([part.format(**names) for part in argv] + ["--port", "0"]))
    assert "{bad}" not in argv or "a.png: no image of a known format" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command(end, tmp_path):
    """A port that is taken, a model that is not there; and a start as a user's, on this machine alone, with its end."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        done = subprocess.run([sys.executable, "-m", "recipes", "app", "--port", str(port)], cwd=ROOT, text=True,
                              capture_output=True)  # fmt: skip
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: cannot serve at ")
    environment = os.environ | {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes", "app", "--port", str(port), "--run_root", str(tmp_path / "runs")], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while True:
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/", timeout=30)
                break
            except httpx.ConnectError:
                assert process.poll() is None and time.monotonic() - started < 60
                time.sleep(0.1)
        assert page.status_code == 200 and "gradio" in page.text
        with socket.socket() as elsewhere, pytest.raises(OSError):
            elsewhere.settimeout(1)
            elsewhere.connect((socket.gethostbyname(socket.gethostname()), port))
            raise OSError if socket.gethostbyname(socket.gethostname()).startswith("127.") else AssertionError
        assert list(tmp_path.glob("prismatic-app-*"))
        process.send_signal(end)
        output, errors = process.communicate(timeout=30)
        assert process.returncode in (0, 1) and "Traceback" not in errors, errors
        assert f"open http://127.0.0.1:{port}" in output
        assert not list(tmp_path.glob("prismatic-app-*")), "temporary files are gone"
    finally:
        process.kill()
