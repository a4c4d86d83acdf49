"""The tab to chat: one model, or two side by side, about a picture; boxes in answers are drawn."""

import re
from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw

from eval.streaming import StreamingEngine
from prismatic.text.parsing import boxes_in_image
from prismatic.text.visible import visible
from recipes.web.shared import page_error, read_picture, safe_image
from recipes.web.talks import Talk, Talks

SHOWN = 512  # pixels that small pictures are enlarged to, at least, where boxes are drawn
COLOURS = ("#e8590c", "#1971c2", "#2f9e44", "#9c36b5")
HINT = "Ask about the picture"


def draw_boxes(picture: Image.Image, boxes: list[list[float]]) -> Image.Image:
    """The picture, enlarged if it is small, with boxes `[x1, y1, x2, y2]` in fractions of it."""
    factor = max(1, -(-SHOWN // max(picture.size)))
    drawn = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    width = max(2, max(drawn.size) // 160)
    for number, box in enumerate(boxes):
        corners = [x * side for x, side in zip(box, (*drawn.size, *drawn.size), strict=True)]
        pen.rectangle(corners, outline=COLOURS[number % len(COLOURS)], width=width)
    return drawn


def as_text(said: str) -> str:
    """A text that a page shows as it is; an invisible joiner keeps `<` and `&` from beginning anything.

    Escaped, as HTML has it, the text would be copied escaped.
    """
    return re.sub("[<&]", "\\g<0>\u2060", visible(said))


def boxes_of(engine: StreamingEngine, text: str, picture: Image.Image | None) -> list[list[float]]:
    """Boxes in an answer, in fractions of the picture, by the model's own frame."""
    frame = getattr(engine.model.config, "box_frame", "image")
    return boxes_in_image(text, frame, *picture.size) if picture else []


def chat_tab(engines: dict[str, StreamingEngine], examples: list[Path], questions: list[str]) -> None:
    """Builds the tab, inside `gr.Tab`.

    Args:
        engines: One or two models by name.
        examples: Files of pictures to choose from; the first is there from the start.
        questions: To choose from, too.
    """
    names, talks = list(engines), Talks(list(engines.values()))
    pictures = [read_picture(path) for path in examples]

    def shown(turns: list[dict]) -> list[dict]:
        return [turn | {"content": as_text(turn["content"])} for turn in turns]

    def update(talk: Talk, picture) -> list:
        """Chats, and pictures with the boxes of the last answers."""
        last = [history[-1]["content"] if history else "" for history in talk.histories]
        found = [boxes_of(engine, text, picture) for engine, text in zip(talk.engines, last, strict=True)]
        drawn = [gr.Image(draw_boxes(picture, boxes) if boxes else None, visible=bool(boxes)) for boxes in found]
        return [*map(shown, talk.histories), *drawn]

    def answer(talk: Talk, text: str, picture, temperature, longest, system):
        options = {"max_new_tokens": int(longest), "temperature": float(temperature)}
        try:
            for number, _ in enumerate(talk.ask(text, (picture,) if picture else (), system or "", **options)):
                yield gr.skip() if number else "", *update(talk, picture)  # who types on is not disturbed
        except (ValueError, RuntimeError) as error:
            raise page_error(error) from None
        # Gradio sends the last values once more at the end: not those of a talk that was begun anew meanwhile.
        yield (gr.skip(), *update(talk, picture)) if any(talk.histories) else [gr.skip()] * len(changed)

    def ask(text, picture, temperature, longest, system, request: gr.Request):
        talk = talks.of(request.session_hash)
        yield from answer(talk, text or "", picture, temperature, longest, system)

    def again(picture, temperature, longest, system, request: gr.Request):
        talk = talks.of(request.session_hash)
        try:
            text = talk.again()
        except ValueError as error:
            raise page_error(error) from None
        yield from answer(talk, text, picture, temperature, longest, system)

    def anew(picture, request: gr.Request):
        talk = talks.of(request.session_hash)
        talk.anew()
        return update(talk, picture)

    def stop_writing(request: gr.Request):
        talks.of(request.session_hash).stop()

    def choose(request: gr.Request, event: gr.SelectData):
        return pictures[event.index], *anew(pictures[event.index], request)

    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=280):
            image = safe_image(
                value=pictures[0] if pictures else None, label="Picture", sources=["upload", "webcam", "clipboard"],
                elem_id="picture", height=320, alt_text="the picture that is talked about",
            )  # fmt: skip
            gallery = gr.Gallery(
                [(p, path.stem) for p, path in zip(pictures, examples, strict=True)], label="Or one of these",
                columns=4, height=130, allow_preview=False, elem_id="examples", format="png", buttons=[],
            )  # fmt: skip
            with gr.Accordion("Settings", open=False):
                temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0: always the likeliest word")
                longest = gr.Slider(8, 1024, 256, step=8, label="Longest answer, in tokens")
                system = gr.Textbox(label="System message", info="where the model's template has a place for one")
        with gr.Column(scale=2, min_width=280):
            with gr.Row(equal_height=False):
                chats, boxed = [], []
                for number, name in enumerate(names):
                    with gr.Column(min_width=280):
                        chats.append(
                            gr.Chatbot(
                                label=visible(name),
                                height=420,
                                render_markdown=False,
                                sanitize_html=True,
                                allow_tags=False,
                                feedback_options=None,
                                buttons=["copy"],
                                elem_id=f"chat-{number}",
                                placeholder=HINT,
                                allow_file_downloads=False,
                                latex_delimiters=[],
                            )  # fmt: skip
                        )
                        boxed.append(
                            gr.Image(
                                label="Boxes in the last answer",
                                visible=False,
                                interactive=False,
                                format="png",
                                height=320,
                                elem_id=f"boxes-{number}",
                                buttons=["fullscreen"],
                                alt_text="the picture with the boxes of the last answer",
                            )  # fmt: skip
                        )
            text = gr.Textbox(label="Question", placeholder=HINT, lines=1, max_lines=6, elem_id="question")
            with gr.Row(elem_classes="buttons"):
                send = gr.Button("Send", variant="primary", elem_id="send", min_width=140)
                stop = gr.Button("Stop", elem_id="stop", min_width=140)
                repeat = gr.Button("Regenerate", elem_id="regenerate", min_width=120)
                clear = gr.Button("Start anew", elem_id="clear", min_width=140)
            gr.Examples(questions, text, label="Such as", elem_id="questions") if questions else None
    both = [*chats, *boxed]
    changed, options = [text, *both], [temperature, longest, system]
    often = {"concurrency_limit": 32, "trigger_mode": "multiple"}  # what comes too early is told so, not swallowed
    gr.on([text.submit, send.click], ask, [text, image, *options], changed, **often)
    repeat.click(again, [image, *options], changed, **often)
    stop.click(stop_writing, concurrency_limit=32)
    gallery.select(choose, None, [image, *both])
    gr.on([clear.click, image.input, image.clear, *(chat.clear for chat in chats)], anew, image, both)
