"""What the tabs of the page share: pictures that strangers upload, and mistakes that are said in one line."""

import functools
import html
from pathlib import Path

import gradio as gr
from PIL import Image

from vision_backbones.safe_images import read_upright

MOST_PIXELS = 50_000_000  # of an uploaded picture


def safe_image(**options) -> gr.Image:
    """A picture by upload, webcam or clipboard, an upright RGB image or None; takes what `gr.Image` does.

    Gradio's own opens any format that Pillow knows, of any size. (A subclass would have Gradio write a file of types
    beside this one.)
    """
    image = gr.Image(**({"format": "png", "buttons": ["fullscreen"]} | options), type="pil")
    image.preprocess = _picture_of
    return image


def _picture_of(payload) -> Image.Image | None:
    return read_picture(payload.path) if payload is not None and payload.path else None


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, upright, in RGB.

    Raises:
        gr.Error: it is none, damaged or too large.
    """
    try:
        return read_upright(path, MOST_PIXELS)
    except ValueError as error:
        raise page_error(f"this file is refused: {error}") from None


def page_error(said: object) -> gr.Error:
    """What the page shows as a message, of one line; Gradio would take it for HTML, and print its traceback."""
    return gr.Error(html.escape(" ".join(str(said).split())[:500]), print_exception=False)


def one_line(function):
    """The function, whose ValueErrors the page shows as a message."""

    @functools.wraps(function)
    def guarded(*args):
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            raise page_error(error) from None

    return guarded
