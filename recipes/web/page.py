"""The page: its tabs, its look, and the limits under which it is served."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from eval.streaming import StreamingEngine
from recipes.serving.server import LOCAL_NAMES, is_local
from recipes.web.chat import chat_tab
from recipes.web.limits import UploadLimits
from recipes.web.runs import runs_tab
from recipes.web.where import where_tab

LARGEST = "20mb"  # of an uploaded file
WAITING = 64  # events that may wait
FONTS = ["system-ui", "sans-serif"]
THEME = gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"], primary_hue="blue")
CSS = """
.gradio-container { display: block !important; width: 100%; min-width: 0; max-width: 1500px !important; margin: auto; }
footer { display: none !important; }
.buttons { flex-wrap: wrap; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
@media (max-width: 640px) { .gradio-container > main, .gradio-container .main { padding: 8px !important; } }
"""


def build_page(
    engines: dict[str, StreamingEngine],
    examples: list[Path],
    questions: list[str],
    *,
    backbones: list[str],
    probes: list[str],
    run_root: Path,
    others: bool = True,
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        engines: One or two models to talk with, by name.
        examples: Files of pictures.
        questions: Examples of what may be asked.
        backbones: Whose patches are shown.
        probes: Folders of saved probes.
        run_root: Folder of the runs.
        others: Whether other backbones and probes of this machine may be looked at, too.
    """
    with gr.Blocks(title="Prismatic", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# Prismatic")
        with gr.Tab("Chat", elem_id="tab-chat"):
            chat_tab(engines, examples, questions)
        with gr.Tab("Where", elem_id="tab-where") as where:
            where.select(**where_tab(backbones, probes, others))
        with gr.Tab("Runs", elem_id="tab-runs"):
            runs_tab(run_root)
    return page.queue(max_size=WAITING, api_open=False, default_concurrency_limit=4)


@contextmanager
def temporary_files() -> Iterator[None]:
    """Keeps what is uploaded and shown in a folder of its own, which is gone afterwards."""
    folder = tempfile.mkdtemp(prefix="prismatic-app-")
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before


def launch(page: gr.Blocks, host: str, port: int, *, block: bool = True) -> str:
    """Serves the page; returns its address, after the end if it blocks.

    Raises:
        OSError: The port is taken.
    """
    middleware = [Middleware(UploadLimits)]
    if is_local(host):  # else a page of others could reach this one under a name of its own (DNS rebinding)
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES))
    _, url, _ = page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=not block,
        max_file_size=LARGEST, ssr_mode=False, enable_monitoring=False, footer_links=[], run_history=False,
        theme=THEME, css=CSS, pwa=False, mcp_server=False, show_error=False, app_kwargs={"middleware": middleware},
    )  # fmt: skip
    return url
