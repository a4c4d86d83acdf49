"""The tab about patches, in a real browser: what is shown is what the backbones say."""

import numpy as np
import pytest
import torch
from browsed import WIDTHS, picture_of, pixels
from matplotlib import colormaps
from PIL import Image
from small_probes import train_probes

from recipes.web import looking
from vision_backbones import create_backbone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """The folder of a probe that was trained a little."""
    arguments = "--data_root miniature:64:16 --batch_size 16 --epochs 3 --backbone miniature-aligned"
    return str(train_probes(tmp_path_factory.mktemp("runs"), "probed", arguments) / "miniature-aligned" / "union")


@pytest.fixture(scope="module")
def url(serve, engines, scenes, probe):
    return serve({"miniature": engines["miniature"]}, scenes, probes=[probe])


@pytest.fixture
def where(visit, url):
    def opened(width=1600, dark=False):
        page = visit(url, width, dark)
        page.get_by_role("tab", name="Where").click()
        page.wait_for_selector("#where-heat-first img")
        return page

    return opened


def settled(page):
    page.wait_for_timeout(1500)


def cosines(name, image, patch):
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        features = backbone(backbone.transform(image)[None])[0, backbone.num_prefix_tokens :].double()
    return torch.nn.functional.cosine_similarity(features, features[patch][None], dim=-1).reshape(6, 6).numpy()


def click_patch(page, selector, row, column, grid=6):
    """Clicks the middle of a patch, counted from 0, of the picture as it is drawn on the page."""
    box = page.locator(f"{selector} img").first.bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.click(left + (column + 0.5) / grid * side, top + (row + 0.5) / grid * side)
    settled(page)


def check_heat_map(page, selector, name, patch):
    """Every patch has the colour of its cosine similarity, over the picture."""
    drawn = pixels(page, selector).astype(float)
    picture = np.asarray(looking.enlarged_example(0).resize((48, 48), Image.Resampling.NEAREST))
    values, side = cosines(name, Image.fromarray(picture), patch), drawn.shape[0] // 6
    for row in range(6):
        for column in range(6):
            middle = drawn[row * side + side // 2, column * side + side // 2]
            below = picture[row * 8 + 4, column * 8 + 4]
            colour = np.array(colormaps["viridis"]((values[row, column] + 1) / 2)[:3]) * 255
            assert np.abs(middle - (0.6 * colour + 0.4 * below)).max() <= 3, (name, row, column)


def test_a_click_shows_what_is_alike_to_both_backbones(where):
    page = where()
    click_patch(page, "#where-picture", 1, 4)
    assert page.get_by_label("Row, from the top").input_value() == "2"
    assert page.get_by_label("Column, from the left").input_value() == "5"
    for selector, name in (("#where-heat-first", "miniature"), ("#where-heat-second", "miniature-aligned")):
        check_heat_map(page, selector, name, 1 * 6 + 4)
    click_patch(page, "#where-heat-second", 5, 0)
    check_heat_map(page, "#where-heat-first", "miniature", 30)
    best = np.sort(cosines("miniature", Image.fromarray(looking.example(0).image), 30).ravel())[-2]
    assert str(round(float(best), 4)) in page.locator("body").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_by_keyboard(where, width):
    page = where(width)
    page.get_by_label("Row, from the top").fill("4")
    page.get_by_label("Column, from the left").fill("2")
    page.keyboard.press("Enter")
    settled(page)
    check_heat_map(page, "#where-heat-first", "miniature", 3 * 6 + 1)
    picture_of(page, "where-similarity", width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_probe_and_the_truth(where, probe, width):
    page = where(width)
    page.get_by_test_id("probe-radio-label").click()
    page.wait_for_selector("#where-predicted img")
    settled(page)
    assert page.locator("#where-true img").is_visible()
    text = page.locator("body").inner_text()
    assert all(thing.name in text for thing in looking.example(0).things)
    picture_of(page, "where-probe", width)


@pytest.mark.parametrize("width", WIDTHS)
def test_masks(where, width):
    page = where(width)
    page.get_by_test_id("mask-radio-label").click()
    page.wait_for_selector("#where-masked img")
    settled(page)
    whole = pixels(page, "#where-masked").astype(int)
    page.get_by_role("button", name="Hide random half").click()
    settled(page)
    hidden = pixels(page, "#where-masked").astype(int)
    side = hidden.shape[0] // 6
    changed = np.abs(hidden - whole).reshape(6, side, 6, side, 3).sum((1, 3, 4)) > 0
    assert 12 <= changed.sum() <= 24
    picture_of(page, "where-mask", width)
    page.get_by_role("button", name="Show all").click()
    settled(page)
    assert (pixels(page, "#where-masked").astype(int) == whole).all()
    click_patch(page, "#where-masked", 2, 2)
    one = np.abs(pixels(page, "#where-masked").astype(int) - whole).reshape(6, side, 6, side, 3).sum((1, 3, 4)) > 0
    assert one.sum() == 1 and one[2, 2]


def test_a_backbone_that_is_not_known_is_a_message(where):
    page = where()
    box = page.get_by_label("Backbone", exact=True)
    box.fill("<img src=x onerror=alert(1)>")
    box.press("Enter")
    page.wait_for_selector(".toast-body")
    assert "<img src=x" in page.locator(".toast-body").inner_text()


def test_dark(where):
    picture_of(where(dark=True), "where-dark", 1600)
