"""Answers that are written together, joined and left at any time, are those of one question at a time."""

import threading
import time

import pytest
import torch
from families import ALONE, ELSE, WORK, write_llm
from PIL import Image

import prismatic
from eval.engine import SharedPrefixEngine
from eval.streaming import Answering, QueueFull, Request, StreamingEngine
from prismatic.miniature.scenes import scene
from prismatic.text.conversations import encode_prompt, insert_image_tokens

QUESTIONS = ["What color is the cross?", "How many objects are there?", "Where is the blue square? " * 9]
PICTURES = [Image.fromarray(scene(77, index).image) for index in range(4)]


def build(llm):
    torch.manual_seed(0)
    model, processor = prismatic.build("miniature", llm, "gelu-mlp", prompt_style="vicuna-v1.5")
    for parameter in model.projector.parameters():
        parameter.data.mul_(3)
    return model.eval(), processor


@pytest.fixture(scope="module")
def parts():
    """A pretrained LLM behind a random projector, which talks until it is cut off or says one of two words."""
    model, processor = build("miniature")
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(["]", "▁yellow"])
    return model, processor


@pytest.fixture
def engine(parts):
    engine = StreamingEngine(*parts, batch_size=6)
    yield engine
    engine.close(finish=False)


def alone(model, processor, request):
    """What `generate` says, by ids written here: BOS, images, text."""
    ids = encode_prompt(list(request.messages), processor.tokenizer)
    count = len(request.images) * processor.num_image_tokens
    bos = processor.tokenizer.bos_token_id
    ids, _ = insert_image_tokens(ids, [0] * len(ids), processor.image_token_id, count, bos_token_id=bos)
    inputs = {"input_ids": torch.tensor([ids])}
    if request.images:
        inputs["pixel_values"] = torch.stack([processor.image_processor.transform(image) for image in request.images])
    mask = torch.ones_like(inputs["input_ids"])
    out = model.generate(**inputs, attention_mask=mask, max_new_tokens=request.max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def asked(text, *pictures, **options):
    return Request([{"role": "user", "content": text}], pictures, **options)


def mixed(longest):
    """Questions of all kinds: with an image, with several, with none, of several turns, short and long answers."""
    requests = [asked(q, PICTURES[i], max_new_tokens=longest - 7 * i) for i in range(4) for q in QUESTIONS]
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    system = [{"role": "system", "content": "Be brief."}, *turns]
    requests += [Request(turns, PICTURES[:1], max_new_tokens=longest), Request(system, (), max_new_tokens=9)]
    return [*requests, asked(QUESTIONS[1], max_new_tokens=longest), asked(QUESTIONS[0], *PICTURES[:2])]


def test_answers_are_those_of_one_question_at_a_time(parts, engine):
    """More than there are rows, longer than what a batch first has room for."""
    requests = mixed(longest=90)
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


@pytest.mark.parametrize("family", ["bloom", "mamba", "rwkv"])
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


def test_images_are_read_once_for_all_that_ask_about_them(parts, engine, monkeypatch):
    read, prefix = [], SharedPrefixEngine.prefix
    monkeypatch.setattr(SharedPrefixEngine, "prefix", lambda *a, **k: read.append(len(a[1])) or prefix(*a, **k))
    for _ in range(3):
        answers = [engine.submit(asked(q, picture.copy(), max_new_tokens=3)) for q in QUESTIONS for picture in PICTURES]
        for answer in answers:
            list(answer)
    assert sum(read) == len(PICTURES)


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
