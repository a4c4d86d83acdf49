"""The tab of runs, in a real browser."""

import json
import re
import subprocess
import sys

import pytest
from browsed import WIDTHS, picture_of
from run_folders import HOLD, recorded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = recorded(tmp_path_factory.mktemp("runs"))
    hostile = root / "<img src=x onerror=alert(1)>"
    hostile.mkdir()
    (hostile / "metrics.jsonl").write_text('{"step": 1, "epoch": 0, "loss": 0.5}\n{"torn')
    (hostile / "config.yaml").write_text("a_setting: '<script>alert(2)</script>'\n")
    return root


@pytest.fixture(scope="module")
def url(serve, engines, scenes, root):
    return serve({"miniature": engines["miniature"]}, scenes, root=root)


@pytest.fixture
def runs(visit, url):
    def opened(width=1600, dark=False):
        page = visit(url, width, dark)
        page.get_by_role("tab", name="Runs").click()
        page.wait_for_timeout(1500)
        return page

    return opened


def choose(page, *names):
    box = page.get_by_label("Show these runs")
    for name in names:
        box.click()
        box.fill(name)
        page.get_by_role("option", name=re.compile(f"^.?\\s*{re.escape(name)}$")).first.click()
    page.keyboard.press("Escape")
    page.wait_for_timeout(3000)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_is_shown(runs, root, width):
    page = runs(width)
    text = page.locator("body").inner_text()
    assert all(name in text for name in ("finetune", "align", "probe"))
    choose(page, "finetune", "align")
    last = [json.loads(line) for line in (root / "finetune" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in last if "loss" in row]
    shown = page.locator("body").inner_text()
    assert f"{losses[-1]:.4g}"[:5] in shown
    assert page.locator("svg").count() > 5, "a chart"
    picture_of(page, "runs", width)


def test_hostile_names_are_text(runs):
    page = runs()
    assert "<img src=x onerror=alert(1)>" in page.locator("body").inner_text()
    choose(page, "finetune")  # beside the newest, which is there from the start
    assert "<script>alert(2)</script>" in page.locator("body").inner_text()


def test_a_run_that_trains_is_followed(runs, root):
    folder = root / "live"
    folder.mkdir()
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 1, "epoch": 0, "loss": 9.25, "learning_rate": 0.1}\n')
    (folder / "config.yaml").write_text("seed: 1\n")
    lock = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / ".lock")], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)  # fmt: skip
    lock.stdout.readline()
    try:
        page = runs()
        page.wait_for_function("document.body.innerText.includes('9.25')")  # the newest is shown from the start
        with metrics.open("a") as file:
            file.write('{"step": 2, "epoch": 0, "loss": 3.125, "learning_rate": 0.1}\n')
        page.wait_for_function("document.body.innerText.includes('3.125')")
    finally:
        lock.stdin.close()
        lock.wait(10)


def test_dark(runs):
    page = runs(dark=True)
    choose(page, "finetune")
    picture_of(page, "runs-dark", 1600)
