"""What is said in a window, without a browser: stops, failures and other pictures at any moment."""

import pytest
import torch
from PIL import Image

import prismatic
from eval.streaming import StreamingEngine
from prismatic.miniature.scenes import scene

pytest.importorskip("gradio", reason="the page needs gradio: make .venv/app")
from recipes.web.talks import Talk, Talks  # noqa: E402 -- after gradio is known to be there

QUESTION, OTHER = "What color is the circle?", "How many objects are there?"
PICTURE = Image.fromarray(scene(11, 0, min_objects=2).image)


@pytest.fixture(scope="module")
def engine():
    engine = StreamingEngine(*prismatic.load("miniature"))
    yield engine
    engine.close(finish=False)


@pytest.fixture
def endless(engine, monkeypatch):
    """The model never ends an answer."""
    monkeypatch.setattr(engine.engine, "eos", torch.tensor([-1]))
    return engine


def finish(talk, text=QUESTION, **options):
    for _ in talk.ask(text, (PICTURE,), "", **options):
        pass
    return [turn["content"] for turn in talk.histories[0]]


def test_turns(engine):
    talk = Talk([engine])
    first = finish(talk)
    second = finish(talk, OTHER)
    assert second[:2] == first and [len(second), second[2]] == [4, OTHER]
    assert talk.again() == OTHER and [turn["content"] for turn in talk.histories[0]] == first
    assert finish(talk, OTHER) == second


def test_a_question_that_was_never_answered_is_no_turn(endless):
    talk = Talk([endless])
    writing = talk.ask(QUESTION, (PICTURE,), "", max_new_tokens=500)
    next(writing)
    talk.stop()
    talk.histories = [talk.histories[0][:1]]  # as when it is stopped before its first token
    for _ in writing:
        pass
    talk.histories = [talk.histories[0][:1]]
    assert finish(talk, OTHER, max_new_tokens=5)[0] == OTHER
    with pytest.raises(ValueError, match="shorten it"):
        finish(talk, "x y " * 900)
    assert finish(talk, QUESTION, max_new_tokens=5)[2] == QUESTION, "and the talk goes on"


def test_a_stopped_answer_stays_as_far_as_it_was_written(endless):
    talk = Talk([endless])
    writing = talk.ask(QUESTION, (PICTURE,), "", max_new_tokens=900)
    for _ in range(4):
        next(writing)
    talk.stop()
    for _ in writing:
        pass
    question, answer = talk.histories[0]
    assert answer["role"] == "assistant" and 0 < len(answer["content"].split()) < 900
    assert len(finish(talk, OTHER, max_new_tokens=3)) == 4


def test_begun_anew_in_the_midst_nothing_comes_back(endless):
    talk = Talk([endless])
    writing = talk.ask(QUESTION, (PICTURE,), "", max_new_tokens=900)
    next(writing), next(writing)
    talk.anew()
    new = talk.ask(OTHER, (PICTURE,), "", max_new_tokens=4)
    next(new)
    assert list(writing) == [] and [turn["content"] for turn in talk.histories[0]] == [OTHER]
    for _ in new:
        pass
    assert len(talk.histories[0]) == 2


def test_one_question_at_a_time(endless):
    talk = Talk([endless])
    writing = talk.ask(QUESTION, (PICTURE,), "", max_new_tokens=900)
    next(writing)
    for refused in (lambda: next(talk.ask(OTHER, (), "")), talk.again):
        with pytest.raises(ValueError, match="an answer is being written"):
            refused()
    writing.close()  # the browser is gone
    assert finish(talk, OTHER, max_new_tokens=3)


@pytest.mark.parametrize("text", ["", "  \n", "x" * 4001])
def test_what_is_no_question(engine, text):
    talk = Talk([engine])
    with pytest.raises(ValueError, match="type a question first|4,001 characters"):
        next(talk.ask(text, (), ""))
    assert talk.histories == [[]]
    with pytest.raises(ValueError, match="no question yet"):
        talk.again()


def test_windows_do_not_mix(engine):
    talks = Talks([engine])
    finish(talks.of("a"))
    assert not talks.of("b").histories[0] and talks.of("a").histories[0]
    for number in range(1000):
        talks.of(number)
    assert len(talks.known) == 1000 and not talks.of("a").histories[0], "the oldest are forgotten"
