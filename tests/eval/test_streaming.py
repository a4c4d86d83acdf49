"""Answers that are written together, joined and left at any time, are those of one question at a time."""

import threading
import time

import pytest
import torch
from families import ALONE, ELSE, WORK, write_llm
from streamed import PICTURES, QUESTIONS, alone, asked, build, mixed

from eval.engine import SharedPrefixEngine
from eval.streaming import Answering, StreamingEngine


def test_answers_are_those_of_one_question_at_a_time(parts, engine):
    """More than there are rows, longer than what a batch first has room for."""
    requests = mixed(longest=70)
    answers = [engine.submit(request) for request in requests]
    texts = ["".join(answer) for answer in answers]
    assert texts == [answer.text for answer in answers]
    assert texts == [alone(*parts, request) for request in requests]
    assert len(set(texts)) >= 10 and max(answer.completion_tokens for answer in answers) > 64
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for request, answer in zip(requests, answers, strict=True):
        if answer.finish_reason == "length":
            assert answer.completion_tokens == request.max_new_tokens


@pytest.mark.parametrize("family", ["gemma2", "mistral", "gpt_oss", "gpt2", "qwen3"])
def test_newcomers_join_a_batch_that_is_being_written(family, tmp_path):
    """Windows, sinks, learned positions: rows of different lengths side by side, as ids of the next tokens show."""
    model, processor = build(write_llm(tmp_path / "llm", family, **WORK[family]))
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    engine = StreamingEngine(model, processor, batch_size=8)
    assert engine.alone is None
    requests, answers = mixed(longest=24)[:8], []
    for request in requests:
        answers.append(engine.submit(request))
        while answers[-1].completion_tokens < 2 and not answers[-1].finish_reason:
            time.sleep(0.001)
    engine.close()
    assert [answer.text for answer in answers] == [alone(model, processor, request) for request in requests]


@pytest.mark.parametrize("family", ["bloom", *(pytest.param(f, marks=pytest.mark.slow) for f in ("mamba", "rwkv"))])
def test_llms_that_share_nothing_answer_one_by_one(family, tmp_path):
    model, processor = build(write_llm(tmp_path / "llm", family, **(ELSE | ALONE)[family]))
    engine = StreamingEngine(model, processor)
    assert engine.alone
    requests = mixed(longest=24)[10:]
    answers = [engine.submit(request) for request in requests]
    engine.close()
    assert [answer.text for answer in answers] == [alone(model, processor, request) for request in requests]
    drawn = StreamingEngine(model, processor)
    one, two = (drawn.submit(asked("Hi", temperature=1.5, seed=4, max_new_tokens=12)) for _ in range(2))
    drawn.close()
    assert one.text == two.text


def test_drawn_answers_repeat_with_their_seed(parts, engine):
    def draw(**options):
        return engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=40, **options))

    answers = [draw(temperature=1.0, seed=seed) for seed in (1, 1, 2)] + [draw(temperature=1.0, seed=3, top_p=1e-9)]
    one, same, other, greedy = ("".join(answer) for answer in answers)
    assert one == same != other
    assert greedy == alone(*parts, asked(QUESTIONS[0], PICTURES[0], max_new_tokens=40))


@pytest.mark.slow
def test_what_is_drawn_follows_the_probabilities(parts, engine):
    """The first tokens of many answers against the model's own softmax at that temperature."""
    model, processor = parts
    inputs = processor.ask([QUESTIONS[0]], PICTURES[:1])
    with torch.no_grad():
        shares = (model(**inputs).logits[0, -1] / 2).softmax(-1)
    answers = [engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=1, temperature=2.0, seed=i))
               for i in range(240)]  # fmt: skip
    assert all("".join(answer) == answer.text for answer in answers)
    top = int(shares.argmax())
    found = sum(answer.tokens == [top] for answer in answers) / len(answers)
    assert 0.02 < shares[top] < 0.98
    assert found == pytest.approx(shares[top].item(), abs=4 * (shares[top] * (1 - shares[top]) / 240).sqrt().item())


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-9, 1e30])
def test_any_temperature_hurts_nobody(parts, engine, temperature):
    others = [engine.submit(asked(QUESTIONS[i], PICTURES[i], max_new_tokens=40)) for i in range(3)]
    odd = engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=40, temperature=temperature, seed=1))
    assert all("".join(answer) == answer.text for answer in [*others, odd])
    assert all(answer.error is None for answer in [*others, odd])
    if temperature < 1e-3:
        assert odd.text == others[0].text == alone(*parts, asked(QUESTIONS[0], PICTURES[0], max_new_tokens=40))


def test_stops_end_an_answer_and_no_piece_of_them_is_shown(parts, engine):
    request = asked(QUESTIONS[0], PICTURES[0], max_new_tokens=60)
    whole = alone(*parts, request)
    stop = whole[len(whole) // 2 :][:5]
    answer = engine.submit(asked(QUESTIONS[0], PICTURES[0], max_new_tokens=60, stop=(stop, "never said")))
    pieces = list(answer)
    assert len(pieces) > 1 and "".join(pieces) == answer.text == whole[: whole.index(stop)].strip()
    assert answer.finish_reason == "stop"


def test_held_back_text_is_shown_when_no_stop_follows(parts):
    answer = Answering(asked("x", stop=("ab]",)), [], [], parts[1].tokenizer, None)
    answer._raw = "say ab"
    answer._show(answer._raw[: len(answer._raw) - answer._held_back()])
    assert answer.text == "say"
    answer.finish("length")
    assert answer.text == "say ab"


def test_images_are_read_once_for_all_that_ask_about_them(parts, engine, monkeypatch):
    read, prefix = [], SharedPrefixEngine.prefix
    monkeypatch.setattr(SharedPrefixEngine, "prefix", lambda *a, **k: read.append(len(a[1])) or prefix(*a, **k))
    for _ in range(3):
        answers = [engine.submit(asked(q, picture.copy(), max_new_tokens=3)) for q in QUESTIONS for picture in PICTURES]
        for answer in answers:
            list(answer)
    assert sum(read) == len(PICTURES)


@pytest.mark.slow
def test_askers_in_many_threads(parts, engine):
    requests, texts = mixed(longest=30), {}

    def ask(number):
        texts[number] = "".join(engine.submit(requests[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[number] for number in range(len(requests))] == [alone(*parts, request) for request in requests]
