"""The tab about patches: which are alike to a backbone, what a probe reads from them, what MaskEmbed makes of masks."""

from collections.abc import Sequence

import gradio as gr

from recipes.web import looking
from recipes.web import where_updates as updates
from recipes.web.shared import one_line, safe_image
from recipes.web.where_updates import NONE

MODES = ("similarity", "probe", "mask")
HEATS = ("where-heat-first", "where-heat-second")  # elements that a click chooses a patch in
PROBED = ("where-predicted", "where-true")
MASKED = ("where-masked", "where-distance")
START = (3, 3)  # row and column, from 1
PATCH_TABLE = ["backbone", "rank", "row", "column", "cosine similarity"]
CLASS_TABLE = ["no.", "class", "predicted", "true", "right", "predicted in (row, column)", "true in (row, column)"]
CLASS_WIDTHS = ["6%", "16%", "14%", "8%", "8%", "24%", "24%"]
CHOSEN_TABLE = ["class", "probability", "true"]
DISTANCE_TABLE = ["rank", "row", "column", "patch is", "distance"]
HELP = (
    "Click a patch of any picture below, or give its row and column. **similarity**: the patches that a backbone finds "
    "alike light up. **probe**: what a saved probe reads from each patch. **mask**: a click hides or shows a patch."
)


def where_tab(backbones: list[str], probes: list[str], others: bool = True) -> dict:
    """Puts the tab's content into the open `gr.Blocks` or `gr.Tab`; returns the event that shows what is chosen.

    Args:
        backbones: Names to choose from; others can be typed.
        probes: Folders of saved probes to choose from; likewise.
        others: Whether others can be typed: error messages tell which folders there are.
    """
    names = list(dict.fromkeys([*backbones, "miniature", "miniature-aligned"]))
    gr.Markdown(HELP)
    with gr.Row():
        free = {"allow_custom_value": others, "interactive": True}
        first = gr.Dropdown(names, value=names[0], label="Backbone", info="id, timm:ID, or folder of a run", **free)
        second = gr.Dropdown(
            [NONE, *names],
            value=backbones[1] if len(backbones) > 1 else NONE,
            label="Second backbone",
            info="beside it, or none",
            **free,
        )
        probe = gr.Dropdown(
            ["", *probes], value=probes[0] if probes else "", label="Probe", info="folder of `prismatic probe`", **free
        )
    mode = gr.Radio(list(MODES), value=MODES[0], label="Show")
    with gr.Row():
        with gr.Column(scale=1):
            picture = safe_image(
                value=looking.enlarged_example(0), label="Picture", sources=["upload", "clipboard"],
                alt_text="the picture that is looked at", elem_id="where-picture",
            )  # fmt: skip
            gallery = gr.Gallery(
                [(looking.enlarged_example(n), f"scene {n}") for n in range(looking.SCENES)], label="Drawn scenes",
                columns=3, height=260, allow_preview=False, interactive=False, elem_id="where-scenes", buttons=[],
            )  # fmt: skip
            with gr.Row():
                row = gr.Number(START[0], label="Row, from the top", precision=0, minimum=1, step=1)
                column = gr.Number(START[1], label="Column, from the left", precision=0, minimum=1, step=1)
            look = gr.Button("Look", variant="primary")
        with gr.Column(scale=2):
            said = gr.Markdown("Press **Look**.", elem_id="where-said")
            *mask_part, buttons = _mask_part()
            parts = dict(zip(MODES, (_similarity_part(), _probe_part(), mask_part), strict=True))
    settings = [mode, picture, first, second, probe, row, column, gr.State([])]
    known = None if others else {NONE, "", *names, *probes}
    return _wire(parts, settings, said, look, buttons, gallery, known)


def _picture(caption: str, id: str, **options) -> list:
    """A picture of results below its caption, as text: Gradio's own label would cover patches."""
    with gr.Column(min_width=200):
        text = gr.Markdown(caption)
        options = {"show_label": False, "label": caption, "alt_text": caption, "elem_id": id} | options
        return [text, gr.Image(interactive=False, format="png", buttons=[], **options)]


def _table(headers: Sequence[str], label: str, **options) -> gr.Dataframe:
    return gr.Dataframe(headers=list(headers), label=label, interactive=False, wrap=True, **options)


def _similarity_part() -> tuple[gr.Column, list]:
    with gr.Column() as part:
        with gr.Row():
            heats = [*_picture("Similarity, backbone", HEATS[0]), *_picture("Similarity, second backbone", HEATS[1])]
        legend = _picture("Scale, for both", "where-scale", height=70)
        table = _table(PATCH_TABLE, "The five most similar patches")
        with gr.Row():
            own = [*_picture("Colours", "where-colours-first"), *_picture("Colours", "where-colours-second")]
    return part, [*heats, *legend, table, *own]


def _probe_part() -> tuple[gr.Column, list]:
    with gr.Column(visible=False) as part:
        with gr.Row():
            pictures = [*_picture("Predicted classes", PROBED[0]), *_picture("True classes", PROBED[1])]
        table = _table(CLASS_TABLE, "Patches of each class", column_widths=CLASS_WIDTHS)
        chosen = _table(CHOSEN_TABLE, "The chosen patch")
    return part, [*pictures, table, chosen]


def _mask_part() -> tuple[gr.Column, list, list[gr.Button]]:
    with gr.Column(visible=False) as part:
        with gr.Row():
            buttons = [gr.Button(name) for name in ("Hide random half", "Show all", "Hide or show the chosen patch")]
        with gr.Row():
            pictures = [*_picture("Masked picture", MASKED[0]), *_picture("Distance of each patch", MASKED[1])]
        legend = _picture("Scale of distances", "where-distance-scale", height=70)
        table = _table(DISTANCE_TABLE, "The five patches that are farthest")
    return part, [*pictures, *legend, table], buttons


def _wire(
    parts: dict, settings: list, said: gr.Markdown, look: gr.Button, buttons: list, gallery: gr.Gallery, known
) -> dict:
    """Connects the tab: everything that changes shows the part of the mode anew."""
    mode, picture, first, second, probe, row, column, hidden = settings
    (half, everything, this), places = buttons, [row, column, hidden]
    results = {name: part[1] for name, part in parts.items()}
    outputs = [*(output for part in results.values() for output in part), said]

    def refresh(mode, image, first, second, probe, row, column, hidden):
        if known is not None and not {first, second, probe} <= known:
            raise ValueError("choose backbones and probes from the lists: this page is open to others")
        if None in (row, column):  # being typed
            return [gr.skip()] * len(outputs)
        if image is None:
            raise ValueError("no picture: upload one, or choose a drawn scene")
        if not (first and second):
            raise ValueError("no backbone: choose one, or give the name or folder of one")
        if mode == "probe" and not probe:
            return [*[gr.skip()] * (len(outputs) - 1), updates.NO_PROBE]
        if mode == "similarity":
            found = updates.show_similarity(image, first, second, row, column)
        elif mode == "probe":
            found = updates.show_probe(image, probe, row, column)
        else:
            found = updates.show_mask(image, first, second, hidden)
        *found, sentence = found
        shown = [found if name == mode else [gr.skip()] * len(part) for name, part in results.items()]
        return [*(update for part in shown for update in part), sentence]

    show = {"fn": one_line(refresh), "inputs": settings, "outputs": outputs, "show_progress": "minimal"}
    for trigger in (look.click, picture.change, first.change, second.change, probe.change, row.input, column.input):
        trigger(**show)
    columns = [part[0] for part in parts.values()]
    mode.change(lambda mode: [gr.update(visible=name == mode) for name in parts], mode, columns).then(**show)

    clickable = {picture: updates.place_in_picture}
    for output in outputs:
        if output.elem_id in (*HEATS, *PROBED, *MASKED):
            clickable[output] = updates.place_in_second if output.elem_id == HEATS[1] else updates.place_in_result
    for shown, place_of in clickable.items():
        shown.select(one_line(_choosing(place_of)), settings, places).success(**show)
    half.click(one_line(updates.hide_half), [first, second], hidden).success(**show)
    everything.click(lambda: [], None, hidden).success(**show)
    this.click(one_line(updates.toggle), [first, second, row, column, hidden], hidden).success(**show)

    def choose_scene(event: gr.SelectData):
        return looking.enlarged_example(event.index)

    gallery.select(choose_scene, None, picture)
    return show


def _choosing(place_of):
    """A handler that chooses the patch that was clicked, or in the mask mode hides or shows it."""

    def choose(mode, image, first, second, probe, row, column, hidden, event: gr.SelectData):
        row, column = place_of(mode, image, first, second, probe, tuple(event.index))
        if mode == "mask":
            hidden = updates.toggle(first, second, row, column, hidden)
        return row, column, hidden

    return choose
