"""Pages as a browser shows them."""

import io

import numpy as np
from golden_cases import ROOT
from PIL import Image

PICTURES = ROOT / "build" / "screenshots"  # kept, to be looked at
WIDTHS = (400, 1600)


def picture_of(page, name, width):
    """Keeps a screenshot; the page must not be wider than the window."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(300)
    page.screenshot(path=PICTURES / f"{name}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def pixels(page, selector):
    """The picture that is shown there."""
    source = page.locator(f"{selector} img").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))
