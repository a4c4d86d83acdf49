"""The page, served in this process, and a real browser that looks at it."""

import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Where drawn scenes lie, and what is uploaded."""
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="session")
def engines():
    """The bundled model, and a second one: the same with other weights in its projector."""
    import torch

    import prismatic
    from eval.streaming import StreamingEngine

    found = {"miniature": StreamingEngine(*prismatic.load("miniature"))}
    model, processor = prismatic.load("miniature")
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.mul_(0.7)
    found["other"] = StreamingEngine(model, processor)
    yield found
    for engine in found.values():
        engine.close(finish=False)


@pytest.fixture(scope="session")
def serve(home):
    """Serves a page of some models; returns its address. Ends with the tests."""
    pytest.importorskip("gradio", reason="the page needs gradio: make .venv/app")
    from recipes.web.page import build_page, launch, temporary_files

    with ExitStack() as stack:
        stack.enter_context(temporary_files())
        pages = []

        def served(engines, examples, questions=(), backbones=("miniature", "miniature-aligned"), probes=(), root=home):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            places = {"backbones": list(backbones), "probes": list(probes), "run_root": Path(root)}
            pages.append(build_page(engines, list(examples), list(questions), **places))
            return launch(pages[-1], "127.0.0.1", port, block=False).rstrip("/")

        yield served
        for page in pages:
            page.close()


@pytest.fixture(scope="session")
def scenes(home):
    """Files of some drawn scenes."""
    from prismatic.miniature.scenes import scene

    files = []
    for index in range(4):
        files.append(home / f"scene {index}.png")
        Image.fromarray(scene(11, index, min_objects=2).image).save(files[-1])
    return files


@pytest.fixture(scope="session")
def chromium():
    """A running browser."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make .venv/browser")
    if not BROWSER:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens an address at some width; the console must stay without errors, and nothing be asked of other hosts."""
    problems, contexts = [], []

    def opened(url, width=1600, dark=False):
        context = chromium.new_context(viewport={"width": width, "height": 950})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if foreign(request.url, url) else None)
        page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        page.goto(url + ("/?__theme=dark" if dark else ""))
        page.wait_for_selector("#question textarea")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def foreign(asked, ours):
    return asked.startswith(("http:", "https:", "ws:", "wss:")) and asked.split("/")[2] != ours.split("/")[2]
