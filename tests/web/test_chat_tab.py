"""The tab to chat, in a real browser, as a person uses it."""

import time

import numpy as np
import pytest
import torch
from browsed import WIDTHS, picture_of, pixels
from PIL import Image

import prismatic
from eval.streaming import Answering, Request, StreamingEngine
from prismatic.text.parsing import find_boxes

pytestmark = pytest.mark.slow
BOX = 'Please provide the bounding box coordinate of the region this sentence describes: "the blue square"'
QUESTIONS = ["What color is the circle?", "How many objects are there?"]


@pytest.fixture(scope="module")
def url(serve, engines, scenes):
    return serve({"miniature": engines["miniature"]}, scenes, QUESTIONS)


def said(page, chat="#chat-0"):
    """The answers that are shown."""
    return [text.strip() for text in page.locator(f"{chat} .bot.message").all_inner_texts()]


def ask(page, text, answers=1, chat="#chat-0"):
    page.fill("#question textarea", text)
    page.click("#send")
    page.wait_for_function(
        "([chat, count]) => document.querySelectorAll(chat + ' .bot.message').length >= count", arg=[chat, answers]
    )
    page.wait_for_timeout(700)  # the last pieces
    return said(page, chat)[-1]


def expected(engine, text, *pictures):
    return "".join(engine.submit(Request([{"role": "user", "content": text}], pictures)))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_conversation(visit, url, engines, scenes, width):
    page = visit(url, width)
    picture = Image.open(scenes[0])
    for number, question in enumerate(QUESTIONS):
        answer = ask(page, question, number + 1)
        if not number:
            assert answer == expected(engines["miniature"], question, picture)
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#chat-0 .bot.message')")
    page.keyboard.press("Escape")
    page.fill("#question textarea", QUESTIONS[1])
    page.keyboard.press("Enter")  # keyboard alone
    page.wait_for_selector("#chat-0 .bot.message")
    page.wait_for_timeout(700)
    assert said(page) == [expected(engines["miniature"], QUESTIONS[1], picture)]
    picture_of(page, "chat", width)


def test_boxes_are_drawn_where_the_answer_says(visit, url, engines, scenes):
    page = visit(url)
    answer = ask(page, BOX)
    (box,) = find_boxes(answer)
    page.wait_for_selector("#boxes-0 img")
    drawn = pixels(page, "#boxes-0").astype(int)
    side = len(drawn)
    original = np.asarray(Image.open(scenes[0]).resize((side, side), Image.Resampling.NEAREST)).astype(int)
    changed = np.abs(drawn - original).sum(-1) > 0
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    x1, y1, x2, y2 = (round(value * side) for value in box)
    assert columns[0] == pytest.approx(x1, abs=1) and rows[0] == pytest.approx(y1, abs=1)
    assert columns[-1] == pytest.approx(min(x2, side - 1), abs=1) and rows[-1] == pytest.approx(y2, abs=1)
    assert not changed[y1 + 8 : y2 - 8, x1 + 8 : x2 - 8].any(), "the frame alone is drawn"
    picture_of(page, "chat-box", 1600)
    assert ask(page, QUESTIONS[0], 2) and not page.locator("#boxes-0 img").is_visible()


def test_another_picture_begins_anew(visit, url, engines, scenes):
    page = visit(url)
    ask(page, QUESTIONS[0])
    page.locator("#examples button.thumbnail-item, #examples .thumbnail-item").nth(3).click()
    page.wait_for_function("!document.querySelector('#chat-0 .bot.message')")
    page.wait_for_timeout(500)
    assert ask(page, QUESTIONS[1]) == expected(engines["miniature"], QUESTIONS[1], Image.open(scenes[3]))


def test_an_uploaded_picture_is_asked_about(visit, url, engines, tmp_path):
    from prismatic.miniature.scenes import scene

    file = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(scene(3, 5, min_objects=3).image).save(file)
    page = visit(url)
    page.get_by_label("Remove Image").first.click()
    page.locator("#picture input[type=file]").set_input_files(file)
    page.wait_for_selector("#picture img")
    page.wait_for_timeout(700)
    assert ask(page, QUESTIONS[1]) == expected(engines["miniature"], QUESTIONS[1], Image.open(file))


def test_regenerate_replaces_the_last_answer(visit, url, engines):
    page = visit(url)
    first = ask(page, QUESTIONS[0])
    page.click("#regenerate")
    page.wait_for_timeout(1500)
    assert said(page) == [first]


def test_two_models_side_by_side(visit, serve, engines, scenes):
    url = serve(engines, scenes)
    page = visit(url)
    ask(page, QUESTIONS[1])
    page.wait_for_timeout(500)
    picture = Image.open(scenes[0])
    both = [said(page, chat) for chat in ("#chat-0", "#chat-1")]
    assert both == [[expected(engine, QUESTIONS[1], picture)] for engine in engines.values()]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 950})
        picture_of(page, "chat-compare", width)


def test_dark(visit, url):
    page = visit(url, dark=True)
    ask(page, QUESTIONS[0])
    picture_of(page, "chat-dark", 1600)
    colour = page.evaluate("getComputedStyle(document.querySelector('#question textarea')).backgroundColor")
    assert sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 150, colour


@pytest.fixture(scope="module")
def slow(serve, scenes):
    """A page whose model takes its time and never ends an answer, as large ones do."""
    engine = StreamingEngine(*prismatic.load("miniature"))
    engine.engine.eos = torch.tensor([-1])
    step = engine.engine.step
    engine.engine.step = lambda *args: time.sleep(0.1) or step(*args)
    yield serve({"slow": engine}, scenes)
    engine.close(finish=False)


def begin(page, text=QUESTIONS[0]):
    page.fill("#question textarea", text)
    page.click("#send")
    last = "[...document.querySelectorAll('#chat-0 .bot.message')].at(-1)?.innerText ?? ''"
    asked = "[...document.querySelectorAll('#chat-0 .user.message')].at(-1)?.innerText ?? ''"
    page.wait_for_function(f"text => ({asked}) == text && ({last}).length > 4", arg=text)


def test_stop_keeps_what_was_written_and_the_talk_goes_on(visit, slow):
    page = visit(slow)
    page.fill("#question textarea", QUESTIONS[0])
    page.click("#send")
    page.click("#stop")  # perhaps before the first word
    page.wait_for_timeout(1000)
    begin(page, QUESTIONS[1])
    page.click("#stop")
    page.wait_for_timeout(800)
    written = said(page)[-1]
    page.wait_for_timeout(1000)
    assert said(page)[-1] == written and not page.locator(".toast-body").count()


@pytest.mark.parametrize("how", ["#clear", "picture", "trash"])
def test_begun_anew_in_the_midst_of_an_answer(visit, slow, how):
    page = visit(slow)
    begin(page)
    if how == "picture":
        page.locator("#examples .thumbnail-item").nth(2).click()
    elif how == "trash":
        page.locator("#chat-0").get_by_label("Clear").first.click()
    else:
        page.click(how)
    page.locator("#chat-0 .message").first.wait_for(state="detached")
    page.wait_for_timeout(2000)  # and no word more comes
    assert not page.locator("#chat-0 .message").count()
    begin(page, QUESTIONS[1])
    assert page.locator("#chat-0 .user.message").all_inner_texts() == [QUESTIONS[1]]
    page.click("#stop")


def test_who_types_on_is_not_disturbed(visit, slow):
    page = visit(slow)
    begin(page)
    page.locator("#question textarea").type("and what", delay=60)
    page.wait_for_timeout(800)
    assert page.locator("#question textarea").input_value() == "and what"
    page.click("#send")  # too early
    page.wait_for_selector(".toast-body")
    assert "an answer is being written" in page.locator(".toast-body").inner_text()
    assert page.locator("#question textarea").input_value() == "and what"
    page.click("#stop")


class Saying:
    """An engine whose model says a certain text."""

    def __init__(self, engine, text):
        self.model, self.processor, self.text = engine.model, engine.processor, text

    def submit(self, request, notify):
        answer = Answering(request, [], [], self.processor.tokenizer, notify)
        answer._raw = self.text
        answer.finish("stop")
        return answer


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b>",
        "[click](javascript:alert(3)) ![](http://127.0.0.1:9/x.png) <svg onload=alert(4)>",
        "<iframe srcdoc='<script>alert(5)</script>'></iframe>\x1b[2J",
    ],
)
def test_neither_question_nor_answer_runs_anything(visit, serve, engines, scenes, text):
    """No dialog, no request to elsewhere (see `visit`); what was said is shown as it is."""
    page = visit(serve({"<img src=x onerror=alert(0)>": Saying(engines["miniature"], text)}, scenes[:1]))
    ask(page, text)
    page.wait_for_timeout(500)
    plain = text.replace("\x1b", "\u241b")
    assert said(page)[0].replace("\u2060", "") == plain
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat-0").get_by_label("Copy").last.click()
    page.wait_for_timeout(300)
    assert page.evaluate("navigator.clipboard.readText()").replace("\u2060", "") == plain
    assert not page.locator("#chat-0 .message :is(script, iframe, svg[onload], b, a, img)").count()
