"""What the streaming engine refuses, and what ends an answer before its end without hurting others."""

import time

import pytest
import torch
from streamed import PICTURES, QUESTIONS, alone, asked

import prismatic
from eval.engine import SharedPrefixEngine
from eval.streaming import QueueFull, Request, StreamingEngine


def test_what_cannot_be_drawn_ends_its_own_answer_alone(parts, engine, monkeypatch):
    drawn = torch.multinomial

    def broken(shares, count, generator):
        if generator.initial_seed() == 7:
            raise RuntimeError("probability tensor contains nan")
        return drawn(shares, count, generator=generator)

    monkeypatch.setattr(torch, "multinomial", broken)
    answers = [engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=9, temperature=1.0, seed=seed))
               for seed in (6, 7, 8)]  # fmt: skip
    with pytest.raises(RuntimeError, match="contains nan"):
        list(answers[1])
    assert all("".join(answer) == answer.text and answer.error is None for answer in (answers[0], answers[2]))


def test_a_system_message_that_is_not_written_is_refused(parts, engine):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    list(engine.submit(Request(messages)))
    template = parts[1].tokenizer.chat_template
    parts[1].tokenizer.chat_template = prismatic.text.prompts.chat_template("pure")
    try:
        with pytest.raises(ValueError, match="no place for a system message"):
            engine.submit(Request(messages))
        list(engine.submit(Request([{"role": "system", "content": " "}, *messages[1:]])))
    finally:
        parts[1].tokenizer.chat_template = template


def test_cancelled_answers_free_their_rows(engine):
    long = [engine.submit(asked(QUESTIONS[i % 2], PICTURES[0], max_new_tokens=700)) for i in range(6)]
    next(iter(long[0]))
    waiting = engine.submit(asked(QUESTIONS[0], PICTURES[1], max_new_tokens=2))
    for answer in long:
        answer.cancel()
    "".join(waiting)
    assert waiting.finish_reason in ("stop", "length")
    assert all(answer.finish_reason in ("cancelled", "stop") for answer in long)
    assert any(answer.finish_reason == "cancelled" and answer.completion_tokens < 700 for answer in long)
    assert engine.waiting_now == 0


def test_too_many_are_refused_and_the_rest_is_finished(parts):
    engine = StreamingEngine(*parts, batch_size=1, waiting=2)
    first = engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=60))
    next(iter(first))
    more = [engine.submit(asked(QUESTIONS[0], max_new_tokens=3)) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting already, at most 2 may"):
        engine.submit(asked(QUESTIONS[0]))
    engine.close()
    assert all(answer.finish_reason in ("stop", "length") for answer in [first, *more])
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(asked(QUESTIONS[0]))


def test_what_comes_at_once_has_the_free_rows_and_may_wait_besides(parts):
    engine = StreamingEngine(*parts, batch_size=3, waiting=2)
    answers = [engine.submit(asked(QUESTIONS[0], max_new_tokens=2)) for _ in range(5)]
    engine.close()
    assert all(answer.finish_reason in ("stop", "length") for answer in answers)


def test_what_is_cancelled_while_it_waits_leaves_the_queue(parts):
    engine = StreamingEngine(*parts, batch_size=1)
    first = engine.submit(asked(QUESTIONS[2], PICTURES[0], max_new_tokens=700))
    next(iter(first))
    waiting = [engine.submit(asked(QUESTIONS[0])) for _ in range(4)]
    for answer in waiting[:3]:
        answer.cancel()
    assert [list(answer) for answer in waiting[:3]] == [[]] * 3
    assert engine.waiting_now <= 1 and not (first.finish_reason and waiting[3].finish_reason)
    first.cancel()
    engine.close()
    assert waiting[3].finish_reason in ("stop", "length")


def test_pictures_are_not_kept(parts, engine):
    answer = engine.submit(asked(QUESTIONS[0], PICTURES[0]))
    assert not answer.request.images and list(answer)


def test_an_error_ends_its_answers_and_not_the_engine(parts, engine, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory\nat all")

    with monkeypatch.context() as broken:
        broken.setattr(SharedPrefixEngine, "step", fail)
        answer = engine.submit(asked(QUESTIONS[0], PICTURES[0]))
        with pytest.raises(RuntimeError, match="OutOfMemoryError: no memory at all"):
            list(answer)
        assert answer.finish_reason == "error"
    assert "".join(engine.submit(asked(QUESTIONS[0], PICTURES[0]))) == alone(*parts, asked(QUESTIONS[0], PICTURES[0]))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one turn"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "ends with an answer"),
        ([{"role": "user", "content": "word " * 2000}], "this model's context has 1024: shorten it"),
        ([{"role": "tool", "content": "x"}], "role"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(engine, messages, said):
    with pytest.raises(ValueError, match=said):
        engine.submit(Request(messages))


@pytest.mark.parametrize("wrong", [{"temperature": float("nan")}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1},
                                   {"max_new_tokens": 0}, {"stop": ("",)}])  # fmt: skip
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected|leave it out"):
        asked("x", **wrong)


def test_an_answer_never_exceeds_the_context(parts, engine):
    request = asked("word " * 850, PICTURES[0], max_new_tokens=5000)
    answer = engine.submit(request)
    list(answer)
    assert answer.prompt_tokens + answer.completion_tokens <= 1024


def test_a_listener_that_fails_cancels_its_answer(engine):
    def gone(piece):
        raise ConnectionError

    answer = engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=500), gone)
    other = engine.submit(asked(QUESTIONS[1], PICTURES[0]))
    list(other)
    deadline = time.monotonic() + 20
    while not answer.finish_reason and time.monotonic() < deadline:
        time.sleep(0.01)
    assert answer.finish_reason == "cancelled" and answer.completion_tokens < 500
