"""What the tab about patches shows, against the backbones, probes and colours themselves, without a browser."""

import re

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from small_probes import train_probes

from eval.probing.saved import load_probe
from prismatic.miniature.scenes import CLASSES
from recipes.web import heat_maps, looking
from vision_backbones import create_backbone
from vision_backbones.maskembed.view import MaskEmbedView
from vision_backbones.patch_views import view_backbone

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8))
SCENE = looking.enlarged_example(1)
PICTURE = looking.Picture.of(SCENE)


def cosines(name, image, patch):
    """By numpy, from the backbone's own features."""
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        features = backbone(backbone.transform(image)[None])[0, backbone.num_prefix_tokens :].double().numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (unit @ unit[patch]).reshape(6, 6)


@pytest.mark.parametrize("name", ["miniature", "miniature-aligned"])
@pytest.mark.parametrize("patch", [0, 15])
def test_values_of_a_heat_map_are_cosines_of_the_features(name, patch):
    for image in (NOISE, Image.fromarray(looking.example(1).image)):
        found = looking.similarities(name, looking.Picture.of(image), patch)
        assert np.abs(found - cosines(name, image, patch)).max() < 1e-5
        assert found.flat[patch] == pytest.approx(1) and found.std() > 0.01


def test_a_patch_of_a_heat_map_has_its_values_colour_over_the_picture():
    values = np.linspace(-1, 1, 36).reshape(6, 6)
    picture = NOISE.resize((48, 48))
    drawn = np.asarray(heat_maps.heat_map(picture, values, -1, 1, chosen=(2, 3))).astype(float)
    side = heat_maps.cell((6, 6), 8)
    assert drawn.shape == (384, 384, 3) and side == 64
    for row in range(6):
        for column in range(6):
            y, x = row * side + side // 2, column * side + side // 2
            colour = np.array(colormaps["viridis"]((values[row, column] + 1) / 2)[:3]) * 255
            below = np.asarray(picture)[y // 8, x // 8]
            assert np.abs(drawn[y, x] - (0.6 * colour + 0.4 * below)).max() <= 1.5
    black, white = drawn[2 * side + 1, 3 * side + side // 2], drawn[2 * side + 5, 3 * side + side // 2]
    assert not black.any() and (white == 255).all(), "the chosen patch is outlined"
    assert drawn[2 * side - 1, 3 * side + side // 2].any(), "and only it"


def test_colours_and_scale():
    assert (
        heat_maps.value_colours(np.array([-9.0, 9]), -1, 1) == heat_maps.value_colours(np.array([0, 1]), 0, 1)
    ).all()
    bar = np.asarray(heat_maps.scale(0, 0.5, "distance"))
    ramp = bar[26, heat_maps.MARGIN : -heat_maps.MARGIN]
    expected = np.array([colormaps["viridis"](share)[:3] for share in np.linspace(0, 1, len(ramp))]) * 255
    assert np.abs(ramp - expected).max() <= 1
    assert np.array_equal(
        np.asarray(heat_maps.colour_grid(np.eye(3, dtype=np.uint8)[None].repeat(3, 0)))[5, 5], [1, 0, 0]
    )
    large = NOISE.resize((500, 400))
    assert heat_maps.enlarged(large).size == (500, 400), "what is large stays as it is"


def test_places_and_ranks():
    values = np.array([[0.1, 0.9], [0.5, 0.7]])
    assert looking.likest(values, 1, most=2) == [(2, 2, 0.7), (2, 1, 0.5)]
    assert looking.likest(values, -1)[0] == (1, 2, 0.9)
    assert looking.patch_of(2, 3, (4, 5)) == 7
    for row, column, message in ((0, 1, "row 0"), (5, 1, "row 5"), (1, 6, "column 6"), (None, 1, "row None")):
        with pytest.raises(ValueError, match=f"{message}: this backbone has 4 x 5 patches, give 1 to"):
            looking.patch_of(row, column, (4, 5))
    assert looking.same_place(7, (4, 5), (8, 10)) == 3 * 10 + 5, "the centre is at 1.5 of 4 and 2.5 of 5"
    assert looking.same_place(35, (6, 6), (2, 3)) == 5 and looking.same_place(0, (2, 3), (6, 6)) == 6 + 1
    assert heat_maps.places(np.eye(2, dtype=bool)) == "(1, 1), (2, 2)"
    assert heat_maps.places(np.ones((3, 4), bool)).endswith("(2, 4), and 4 more")


@pytest.mark.parametrize("size", [(60, 90), (3000, 700), (48, 48)])
def test_a_click_means_the_patch_below_it(size):
    """Of a picture that is squashed, whose middle is cut out, or that is padded: by arithmetic."""
    (width, height), short, long = size, min(size), max(size)
    grid, rng = (6, 6), np.random.default_rng(0)
    for strategy in ("resize-naive", "resize-crop", "letterbox"):
        transform = create_backbone("miniature", image_resize_strategy=strategy).transform

        def see(image, transform=transform):
            pixels = transform(image).mul(0.5).add(0.5).mul(255).clamp(0, 255)
            return Image.fromarray(pixels.byte().permute(1, 2, 0).numpy())

        for _ in range(20):
            row, column = rng.integers(6, size=2)
            shares = (np.array([column, row]) + rng.uniform(0.25, 0.75, 2)) / 6  # well inside the patch
            span = {"resize-naive": np.array(size), "resize-crop": short, "letterbox": long}[strategy]
            x, y = (np.array(size) / 2 + (shares - 0.5) * span).astype(int)
            if 0 <= x < width and 0 <= y < height:
                assert looking.place_at(see, size, x, y, grid) == (row, column), (strategy, x, y)


def test_a_drawn_scene_is_known_and_seen_as_it_was_drawn():
    assert SCENE.size == (384, 384) and PICTURE.number == 1
    assert np.array_equal(np.asarray(PICTURE.image), looking.example(1).image)
    changed = np.array(SCENE)
    changed[3, 3] += 1
    other = looking.Picture.of(Image.fromarray(changed))
    assert other.number is None and other.image.size == (384, 384) and other != PICTURE
    assert looking.Picture.of(NOISE).number is None and looking.Picture.of(NOISE) == looking.Picture.of(NOISE.copy())


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """Folders of three probes, trained a little."""
    kinds = ("union", "majority", "global-union")
    arguments = f"--backbone miniature-aligned --labels {','.join(kinds)} --epochs 4"
    run = train_probes(tmp_path_factory.mktemp("probes"), "r", arguments)
    return {labels: str(run / "miniature-aligned" / labels) for labels in kinds}


def true_classes(patch_rows, patch_columns):
    """Which classes have how many pixels in a patch of the scene, from the masks of its things."""
    drawn, counts = looking.example(1), {}
    for thing in drawn.things:
        number = CLASSES.index(thing.name) + 1
        counts[number] = counts.get(number, 0) + int(thing.mask()[patch_rows, patch_columns].sum())
    return {number: count for number, count in counts.items() if count}


@pytest.mark.parametrize("labels", ["union", "majority", "global-union"])
def test_what_a_probe_says_and_what_is_true(labels, probes):
    saved = looking.probed(probes[labels])
    answer = looking.ask_probe(saved, PICTURE)
    probabilities = load_probe(probes[labels]).probabilities([PICTURE.image])[0].numpy()
    assert np.array_equal(answer.probabilities, probabilities)
    rows, columns = saved.grid
    for row in range(rows):
        for column in range(columns):
            here = probabilities[row, column]
            if labels == "global-union":
                found, counts = set(np.flatnonzero(here > 0.5)), true_classes(slice(None), slice(None))
                true = {0, *counts}
            else:
                found = {int(here.argmax())} if labels == "majority" or here.max() > 0.5 else set()
                counts = true_classes(slice(row * 8, row * 8 + 8), slice(column * 8, column * 8 + 8))
                counts[0] = 64 - sum(counts.values())
                union = {number for number, count in counts.items() if number} or {0}
                true = union if labels == "union" else {max(counts, key=lambda n: (counts[n], -n))}
            assert set(np.flatnonzero(answer.predicted[row, column])) == found
            assert set(np.flatnonzero(answer.truth[row, column])) == true
    assert looking.ask_probe(saved, looking.Picture.of(NOISE)).truth is None


def test_numbers_of_the_mask_view():
    hidden = {0, 7, 8, 20}
    seen = looking.masked("miniature-aligned", PICTURE, hidden)
    visible = torch.tensor([number not in hidden for number in range(36)])
    expected = MaskEmbedView("miniature-aligned")(PICTURE.image, visible)
    assert torch.equal(seen.distances, expected.distances) and seen.loss == expected.loss
    assert (np.abs(np.asarray(seen.picture)[:8, :8] - 127.5) <= 0.5).all(), "hidden is grey"
    assert looking.aligned_of(["miniature", "miniature-aligned"]) == "miniature-aligned"
    with pytest.raises(ValueError, match="miniature: not aligned"):
        looking.aligned_of(["miniature"])


def test_classes_are_numbered_in_their_patches():
    present = np.zeros((2, 2, 5), bool)
    present[0, 0, 3], present[1, 1, 0] = True, True
    grey = Image.new("RGB", (48, 48), (128, 128, 128))
    drawn, bare = np.asarray(heat_maps.class_grid(grey, present)), present.copy()
    bare[0, 0, 3] = False
    plain = np.asarray(heat_maps.class_grid(grey, bare))
    assert (plain == 128).all(), "class 0 is left clear"
    inner = drawn[:192, :192]
    assert len(np.unique(inner.reshape(-1, 3), axis=0)) > 2 and (inner == 255).all(-1).any(), "a number in white"
    assert (drawn[192:] == 128).all() and (drawn[:, 192:] == 128).all()


class TestPage:
    """What the handlers give to the page."""

    @pytest.fixture(autouse=True)
    def page(self):
        pytest.importorskip("gradio")
        from recipes.web import where, where_updates

        self.where, self.updates = where, where_updates

    def test_similarity(self):
        first, heat, second, other, _, _, table, *own, said = self.updates.show_similarity(
            SCENE, "miniature", "miniature-aligned", 2, 4
        )
        expected = {name: cosines(name, PICTURE.image, 9) for name in ("miniature", "miniature-aligned")}
        for name, shown in (("miniature", heat), ("miniature-aligned", other)):
            drawn = heat_maps.heat_map(PICTURE.image, expected[name], -1, 1, (1, 3))
            assert np.abs(np.asarray(shown["value"]).astype(int) - np.asarray(drawn)).max() <= 1
            assert shown["alt_text"] == f"{name}: similarity to row 2, column 4"
            rows = [row for row in table if row[0] == name]
            assert [row[1] for row in rows] == [1, 2, 3, 4, 5]
            best = sorted(np.delete(expected[name].ravel(), 9))[:-6:-1]
            assert [row[4] for row in rows] == pytest.approx(best, abs=1e-4)
            for _, _, row, column, value in rows:
                assert expected[name][row - 1, column - 1] == pytest.approx(value, abs=1e-4)
        assert "row 2, column 4" in said and len(own) == 4
        alone = self.updates.show_similarity(SCENE, "miniature", "none", 2, 4)
        assert not alone[3]["visible"] and {row[0] for row in alone[6]} == {"miniature"}

    def test_mask(self):
        _, picture, caption, heat, _, _, table, said = self.updates.show_mask(
            SCENE, "miniature", "miniature-aligned", [3, 4]
        )
        mask = torch.ones(36, dtype=torch.bool)
        mask[[3, 4]] = False
        expected = MaskEmbedView("miniature-aligned")(PICTURE.image, mask)
        numbers = [float(number) for number in re.findall(r"\d\.\d{4}", said)]
        distances = expected.distances
        means = (distances.mean(), distances[[3, 4]].mean(), distances[mask].mean(), torch.tensor(expected.loss))
        assert numbers == pytest.approx([mean.item() for mean in means], abs=6e-5) and "2 of 36 patches hidden" in said
        assert table[0][4] == pytest.approx(distances.max().item(), abs=1e-5)
        assert [row[3] for row in table] == [
            "hidden" if (r - 1) * 6 + c - 1 in (3, 4) else "visible" for _, r, c, *_ in table
        ]
        worst = int(distances.argmax())
        y, x = worst // 6 * 64 + 32, worst % 6 * 64 + 32
        yellow = np.array(colormaps["viridis"](1.0)[:3]) * 255
        below = np.asarray(expected.picture)[y // 8, x // 8]
        assert np.abs(np.asarray(heat["value"])[y, x] - (0.6 * yellow + 0.4 * below)).max() <= 1.5
        assert np.array_equal(np.asarray(picture["value"])[::8, ::8], np.asarray(expected.picture))
        assert f"0 to {distances.max().item():.3g}" in caption["value"]

    def test_probe(self, probes):
        *_, rows, chosen, said = self.updates.show_probe(SCENE, probes["majority"], 1, 1)
        answer = looking.ask_probe(looking.probed(probes["majority"]), PICTURE)
        there = (answer.predicted | answer.truth).any((0, 1))
        assert [int(row[0]) for row in rows] == list(np.flatnonzero(there))
        for number, name, predicted, true, right, *_ in rows:
            found, marks = (part[..., int(number)] for part in (answer.predicted, answer.truth))
            assert name == ("background", *CLASSES)[int(number)]
            assert (int(predicted), int(true), int(right)) == (found.sum(), marks.sum(), (found * marks).sum())
        assert [row[1] for row in chosen] == pytest.approx(np.sort(answer.probabilities[0, 0])[:-6:-1], abs=1e-4)
        assert "majority labels of miniature, read from miniature-aligned" in said
        pictures = self.updates.show_probe(NOISE, probes["global-union"], 1, 1)
        assert "unknown" in pictures[2]["value"] and not pictures[3]["visible"]

    def test_clicks(self, probes):
        both, union = ("miniature", "miniature-aligned"), probes["union"]
        assert self.updates.place_in_picture("similarity", NOISE, *both, "", (59, 0)) == (1, 6)
        assert self.updates.place_in_result("similarity", SCENE, *both, "", (383, 130)) == (3, 6)
        assert self.updates.place_in_second("similarity", SCENE, *both, "", (65, 63)) == (1, 2)
        assert self.updates.place_in_picture("mask", SCENE, *both, "", (70, 200)) == (4, 2)
        # a probe sees the centred square of 60 x 60 pixels: rows of 10 from pixel 15
        assert self.updates.place_in_picture("probe", NOISE, *both, union, (31, 30)) == (2, 4)
        assert self.updates.toggle(*both, 2, 1, [3]) == [3, 6] and self.updates.toggle(*both, 2, 1, [3, 6]) == [3]
        half = self.updates.hide_half(*both)
        assert len(set(half)) == 18 and set(half) <= set(range(36))

    def test_the_tab_is_built_and_all_pictures_say_what_they_are(self):
        import gradio as gr

        with gr.Blocks() as blocks, gr.Tab("Where"):
            self.where.where_tab(["mine"], ["runs/probe/a/union"])
        parts = list(blocks.blocks.values())
        images = [part for part in parts if isinstance(part, gr.Image)]
        assert len(images) == 11 and all(part.alt_text and part.elem_id for part in images)
        dropdowns = {part.label: part for part in parts if isinstance(part, gr.Dropdown)}
        assert dropdowns["Backbone"].value == "mine" and dropdowns["Second backbone"].value == "none"
        assert [name for name, _ in dropdowns["Backbone"].choices] == ["mine", "miniature", "miniature-aligned"]
        assert "runs/probe/a/union" in dict(dropdowns["Probe"].choices) and all(
            d.allow_custom_value for d in dropdowns.values()
        )


def test_views_are_kept():
    assert looking.viewed("miniature") is looking.viewed("miniature")
    assert torch.equal(looking.seen("miniature", PICTURE).features, view_backbone("miniature")(PICTURE.image).features)
