"""What the page shows of patches in each mode, as updates of its parts; and which patch a click means."""

import random
from collections.abc import Sequence
from functools import partial

import gradio as gr
import numpy as np
from PIL import Image

from recipes.web import heat_maps, looking
from vision_backbones.patch_views import colours

NONE = "none"  # in place of a second backbone
SCORE = "cosine similarity to the outlined patch"
NO_PROBE = "no probe: give the folder that prismatic probe wrote, RUN/BACKBONE/LABELS"


def _shown(picture: Image.Image | None, caption: str) -> list:
    """Updates of a caption and of the picture below it, which is gone where there is none."""
    there = picture is not None
    return [gr.update(value=caption), gr.update(value=picture, alt_text=caption.replace("**", ""), visible=there)]


def show_similarity(image: Image.Image, first: str, second: str, row: int, column: int) -> list:
    """Updates of the similarity part: two heat maps, scale, table, two pictures in colours; and what is said."""
    picture, rows, heats, own = looking.Picture.of(image), [], [], []
    patch = looking.patch_of(row, column, looking.viewed(first).grid)
    for which, name in (("first", first), ("second", second)):
        if name == NONE:
            heats += _shown(None, "")
            own += _shown(None, "")
            continue
        viewed, seen = looking.viewed(name), looking.seen(name, picture)
        here = patch if which == "first" else looking.same_place(patch, looking.viewed(first).grid, viewed.grid)
        values, place = looking.similarities(name, picture, here), divmod(here, viewed.grid[1])
        drawn = heat_maps.heat_map(seen.picture, values, -1, 1, place)
        heats += _shown(drawn, f"**{name}**: similarity to row {place[0] + 1}, column {place[1] + 1}")
        best = enumerate(looking.likest(values, here), start=1)
        rows += [[name, rank, r, c, round(value, 4)] for rank, (r, c, value) in best]
        grid = colours(seen.features[None])[0].view(*viewed.grid, 3).numpy()
        own += _shown(heat_maps.colour_grid(grid), f"**{name}**: main directions as colours; alike is of one colour")
    said = f"Cosine similarity to the patch in row {row}, column {column}: brighter is more alike, from -1 to 1."
    return [*heats, *_shown(heat_maps.scale(-1, 1, SCORE), "Scale, for both: -1 to 1"), rows, *own, said]


def show_probe(image: Image.Image, folder: str, row: int, column: int) -> list:
    """Updates of the probe part: predicted and true classes, tables of classes and of a patch; and what is said."""
    saved = looking.probed(folder)
    answer = looking.ask_probe(saved, looking.Picture.of(image))
    predicted, truth = answer.predicted, answer.truth
    whole = saved.labels == "global-union"
    at = (0, 0) if whole else divmod(looking.patch_of(row, column, saved.grid), saved.grid[1])
    best = np.argsort(-answer.probabilities[at], kind="stable")[:5]
    chosen = [
        [saved.classes[i], round(float(answer.probabilities[at][i]), 4),
         "unknown" if truth is None else "yes" if truth[at][i] else "no"] for i in best
    ]  # fmt: skip
    pictures = []
    for what, marks in (("Predicted classes", predicted), ("True classes", truth)):
        drawn = None if marks is None else heat_maps.class_grid(answer.square, marks, None if whole else at)
        caption = f"{what}: unknown of this picture" if marks is None else f"{what}, by their numbers in the table"
        pictures += _shown(drawn, caption)
    said = f"{saved.labels} labels of {saved.dataset}, read from {saved.backbone}: "
    said += "classes of the whole image" if whole else "the likeliest class of each patch"
    rows = _class_rows(saved.classes, predicted, truth)
    return [*pictures, rows, chosen, f"{said}{'' if saved.labels == 'majority' else ', where above 0.5'}."]


def _class_rows(classes: Sequence[str], predicted: np.ndarray, truth: np.ndarray | None) -> list[list[str]]:
    """Of each class that is predicted or true: in how many patches, in how many of them rightly, and where."""
    rows, there = [], predicted if truth is None else predicted | truth
    for number in np.flatnonzero(there.any((0, 1))):
        found = predicted[..., number]
        true, right, where = ["unknown"] * 3
        if truth is not None:
            marks = truth[..., number]
            true, right, where = marks.sum(), (marks & found).sum(), heat_maps.places(marks)
        row = [number, classes[number], found.sum(), true, right, heat_maps.places(found), where]
        rows.append([str(entry) for entry in row])
    return rows


def show_mask(image: Image.Image, first: str, second: str, hidden: list[int]) -> list:
    """Updates of the mask part: masked picture, distances, their scale and table; and what is said."""
    name = _aligned(first, second)
    seen = looking.masked(name, looking.Picture.of(image), set(hidden))
    view, values = looking.mask_view(name), seen.distances.numpy()
    grid = values.reshape(view.grid)
    high = max(float(values.max()), 1e-6)
    heat = heat_maps.heat_map(seen.picture, grid, 0, high)
    rows = [
        [rank, r, c, "hidden" if (r - 1) * view.grid[1] + c - 1 in hidden else "visible", round(value, 5)]
        for rank, (r, c, value) in enumerate(looking.likest(grid, -1), start=1)
    ]
    loss, out = view.alignment.loss, np.isin(np.arange(values.size), hidden)
    kinds = (("hidden", out), ("visible", ~out))
    means = ", ".join(f"{kind} {values[which].mean():.4f}" for kind, which in kinds if which.any())
    said = (
        f"{name}: {out.sum()} of {values.size} patches hidden. Distance ({loss}, as in training) of the reconstruction "
        f"to the teacher's tokens: mean {values.mean():.4f} ({means}); the loss, with prefix tokens, {seen.loss:.4f}."
    )
    legend = heat_maps.scale(0, high, f"distance ({loss})")
    pictures = _shown(heat_maps.enlarged(seen.picture), f"What the teacher sees: {out.sum()} patches hidden")
    pictures += _shown(heat, f"Distance of each patch, 0 to {high:.3g}") + _shown(legend, "Scale of distances")
    return [*pictures, rows, said]


def place_in_picture(mode, image, first, second, probe, at):
    """Row and column, from 1, of the patch at a pixel of the uploaded picture."""
    see, grid, _ = _sight(mode, first, second, probe)
    return _from_1(looking.place_at(see, image.size, *at, grid))


def place_in_result(mode, image, first, second, probe, at):
    """As `place_in_picture`, of a picture that shows the patches of the first backbone, the probe or the mask."""
    _, grid, patch = _sight(mode, first, second, probe)
    return _from_1(_cell_at(at, grid, patch))


def place_in_second(mode, image, first, second, probe, at):
    """As `place_in_picture`, of the second backbone's heat map: the patch of the first at the same place."""
    other, grid = looking.viewed(second), looking.viewed(first).grid
    row, column = _cell_at(at, other.grid, other.patch)
    return _from_1(divmod(looking.same_place(row * other.grid[1] + column, other.grid, grid), grid[1]))


def _from_1(place: tuple[int, int]) -> tuple[int, int]:
    return place[0] + 1, place[1] + 1


def _cell_at(at: tuple[int, int], grid: tuple[int, int], patch: int) -> tuple[int, int]:
    side = heat_maps.cell(grid, patch)
    return min(int(at[1]) // side, grid[0] - 1), min(int(at[0]) // side, grid[1] - 1)


def _sight(mode: str, first: str, second: str, probe: str):
    """What sees in a mode, its rows and columns of patches, and their side in pixels."""
    if mode == "similarity":
        viewed = looking.viewed(first)
        return viewed.see, viewed.grid, viewed.patch
    if mode == "mask":
        view = looking.mask_view(_aligned(first, second))
        return view.see, view.grid, view.patch
    saved = looking.probed(probe)
    return partial(looking.seen_by_probe, saved), saved.probe.backbone.grid, saved.patch


def _aligned(first: str, second: str) -> str:
    return looking.aligned_of([name for name in (second, first) if name != NONE])


def hide_half(first: str, second: str) -> list[int]:
    """The numbers of a random half of the patches."""
    rows, columns = looking.mask_view(_aligned(first, second)).grid
    return sorted(random.sample(range(rows * columns), rows * columns // 2))


def toggle(first: str, second: str, row: int, column: int, hidden: list[int]) -> list[int]:
    """The numbers of hidden patches, with one patch hidden that was not, or shown that was."""
    number = looking.patch_of(row, column, looking.mask_view(_aligned(first, second)).grid)
    return sorted(set(hidden) ^ {number})
