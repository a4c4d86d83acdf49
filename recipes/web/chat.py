"""The tab to chat: one model, or two side by side, about a picture; boxes in answers are drawn."""

import queue
import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
from PIL import Image, ImageDraw

from eval.scoring.parsing import boxes_in_image
from eval.streaming import Answering, QueueFull, Request, StreamingEngine
from recipes.chatting.terminal import printable
from recipes.web.shared import one_line, page_error, read_picture, safe_image

LONGEST = 4_000  # characters of a question
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
    return re.sub("[<&]", "\\g<0>\u2060", printable(said))


def boxes_of(engine: StreamingEngine, text: str, picture: Image.Image | None) -> list[list[float]]:
    """Boxes in an answer, in fractions of the picture, by the model's own frame."""
    frame = getattr(engine.model.config, "box_frame", "image")
    return boxes_in_image(text, frame, *picture.size) if picture else []


def answer_all(
    engines: list[StreamingEngine], requests: list[Request]
) -> Iterator[tuple[list[str], list[Answering | None]]]:
    """What was said so far, by every engine, as often as one says more; ends when all have ended.

    Raises:
        ValueError: A conversation is too long for a model, or too many are waiting.
    """
    news: queue.SimpleQueue = queue.SimpleQueue()
    answers: list[Answering] = []
    try:
        for number, (engine, request) in enumerate(zip(engines, requests, strict=True)):
            answers.append(engine.submit(request, lambda piece, number=number: news.put((number, piece))))
        going = len(answers)
        while going:
            going -= news.get()[1] is None
            while not news.empty():
                going -= news.get()[1] is None
            yield [answer.text for answer in answers], answers
    except QueueFull as error:
        raise ValueError(f"{error}: try again in a moment") from None
    finally:
        for answer in answers:  # whoever asked may be gone
            answer.cancel()


def chat_tab(engines: dict[str, StreamingEngine], examples: list[Path], questions: list[str]) -> None:
    """Builds the tab, inside `gr.Tab`.

    Args:
        engines: One or two models by name.
        examples: Files of pictures to choose from; the first is there from the start.
        questions: To choose from, too.
    """
    names, models = list(engines), list(engines.values())
    pictures = [read_picture(path) for path in examples]

    def shown(turns: list[dict]) -> list[dict]:
        return [turn | {"content": as_text(turn["content"]) or " "} for turn in turns]

    def update(histories, picture, answers=None):
        """Values of everything that an answer changes: chats, pictures with boxes, histories."""
        answers = answers or [history[-1]["content"] if history else "" for history in histories]
        found = [boxes_of(m, text, picture) for m, text in zip(models, answers, strict=True)]
        drawn = [
            gr.Image(draw_boxes(picture, boxes), visible=True) if boxes else gr.Image(None, visible=False)
            for boxes in found
        ]
        return [*map(shown, histories), *drawn, histories]

    def ask(text, picture, histories, temperature, longest, system):
        text = (text or "").strip()
        if not text:
            raise page_error("Type a question first.")
        if len(text) > LONGEST:
            raise page_error(f"The question has {len(text):,} characters: at most {LONGEST:,}.")
        asked = [[*history, {"role": "user", "content": text}] for history in histories]
        first = [{"role": "system", "content": system.strip()}] if (system or "").strip() else []
        options = {"max_new_tokens": int(longest), "temperature": float(temperature)}
        images = (picture,) if picture else ()
        try:
            requests = [Request([*first, *history], images, **options) for history in asked]
            yield "", *update(asked, picture)
            for texts, answers in answer_all(models, requests):  # noqa: B007
                said = [[*h, {"role": "assistant", "content": t}] for h, t in zip(asked, texts, strict=True)]
                yield "", *update(said, picture)
            if problems := [answer.error for answer in answers if answer.error]:
                raise ValueError(problems[0])
        except (ValueError, RuntimeError) as error:
            raise page_error(error) from None

    def again(picture, histories, temperature, longest, system):
        if not histories[0]:
            raise page_error("There is no answer yet.")
        last = max(place for place, turn in enumerate(histories[0]) if turn["role"] == "user")
        text = histories[0][last]["content"]
        yield from ask(text, picture, [history[:last] for history in histories], temperature, longest, system)

    def anew(picture):
        return "", *update([[] for _ in models], picture)

    def choose(event: gr.SelectData):
        return pictures[event.index]

    def hide(histories):
        return histories

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
                                label=printable(name),
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
    histories = gr.State([[] for _ in models])
    changed = [text, *chats, *boxed, histories]
    options = [temperature, longest, system]
    running = [
        gr.on([text.submit, send.click], ask, [text, image, histories, *options], changed, concurrency_limit=32),
        repeat.click(again, [image, histories, *options], changed, concurrency_limit=32),
    ]
    stop.click(hide, histories, histories, cancels=running)
    clear.click(one_line(anew), image, changed, cancels=running)
    gallery.select(choose, None, image).then(one_line(anew), image, changed, cancels=running)
    image.input(one_line(anew), image, changed, cancels=running)
