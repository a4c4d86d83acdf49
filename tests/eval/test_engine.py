"""One engine against the other: what is shared must not change a single token."""

import numpy as np
import pytest
import torch
from PIL import Image
from streamed import build

from eval.engine import Question, SharedPrefixEngine, pad_left
from eval.generate_engine import PlainEngine, load_engine
from eval.task import Choose, Generate
from prismatic.miniature.scenes import scene

PROMPTS = [
    "What color is the cross?\nAnswer the question using a single word or phrase.",
    'Please provide the bounding box coordinate of the region this sentence describes: "the red circle"',
    "How many objects are there?",
    "Where is the blue square?",
    "What is in the top left?\nA. a circle\nB. a square\nC. nothing\nD. a large cross of any color there is\n"
    "Answer with the option's letter from the given choices directly.",
]
LETTERS = Choose(("A", "B", "C", "D"))
LONG = Choose(("a red circle", "a blue square of some size", "no", "yes"))


@pytest.fixture(scope="module")
def parts():
    model, processor = build("miniature", prompt_style="auto")
    # Answers of a short word would prove little: they end where few words end them.
    words = processor.tokenizer.convert_tokens_to_ids(["]", "▁blue"])
    model.generation_config.eos_token_id = words
    pictures = [Image.fromarray(scene(77, index).image) for index in range(6)]
    return model.eval(), processor, pictures


def ask(engine, pictures, questions):
    return engine.answer([engine.prepare(picture) for picture in pictures], questions)


def asked(kinds, seed=0):
    """Every prompt about some pictures with some kind of answer, in no order."""
    rng = np.random.default_rng(seed)
    questions = [Question(image, prompt, kinds[(image + number) % len(kinds)]) for image in range(6) for number, prompt
                 in enumerate(PROMPTS) if rng.random() < 0.8]  # fmt: skip
    return [questions[i] for i in rng.permutation(len(questions))]


@pytest.fixture(scope="module")
def one_at_a_time(parts):
    """Questions of every kind, and what the plain engine answers to each alone."""
    model, processor, pictures = parts
    questions = asked([Generate(12), Generate(1), LETTERS, LONG, Generate(24)])
    return questions, ask(PlainEngine(model, processor, 1), pictures, questions)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_answers_equal_those_of_one_question_at_a_time(parts, one_at_a_time, batch_size):
    (model, processor, pictures), (questions, expected) = parts, one_at_a_time
    given = ask(SharedPrefixEngine(model, processor, batch_size), pictures, questions)
    assert [answer.text for answer in given] == [answer.text for answer in expected]
    texts = {answer.text for answer in given if answer.probabilities is None}
    lengths = {len(processor.tokenizer(text).input_ids) for text in texts}
    assert len(texts) >= 8 and len(lengths) >= 4, "a test on answers that hardly differ proves little"
    for one, other in zip(given, expected, strict=True):
        assert (one.probabilities is None) == (other.probabilities is None)
        if one.probabilities:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert sum(one.probabilities) == pytest.approx(1)


def test_prefixes_are_shared_in_half_precision(parts):
    """Rounding is no reason against it; the answers are nearly all those of one question at a time."""
    _, _, pictures = parts
    engine = load_engine("miniature", dtype=torch.bfloat16, device="cpu", batch_size=16)
    assert isinstance(engine, SharedPrefixEngine)
    questions = asked([Generate(8), LETTERS], seed=2)
    alone = load_engine("miniature", dtype=torch.bfloat16, device="cpu", batch_size=1, strict=True)
    given, expected = ask(engine, pictures, questions), ask(alone, pictures, questions)
    assert np.mean([one.text == other.text for one, other in zip(given, expected, strict=True)]) >= 0.9


def test_plain_batches_equal_plain_single_questions(parts):
    model, processor, pictures = parts
    questions = asked([Generate(8), LETTERS, LONG], seed=1)
    expected = ask(PlainEngine(model, processor, 1), pictures, questions)
    given = ask(PlainEngine(model, processor, 5), pictures, questions)
    assert [answer.text for answer in given] == [answer.text for answer in expected]
    for one, other in zip(given, expected, strict=True):
        assert one.probabilities == (other.probabilities and pytest.approx(other.probabilities, abs=1e-5))


def test_probabilities_of_long_options_are_products_along_the_tokens(parts):
    model, processor, pictures = parts
    engine = SharedPrefixEngine(model, processor, 4)
    (answer,) = ask(engine, pictures[:1], [Question(0, PROMPTS[0], LONG)])
    text = PlainEngine(model, processor, 1).text_of(PROMPTS[0])
    joint = []
    for option in engine.option_ids(LONG.options):
        inputs = processor(images=pictures[0], text=text)
        probability = 1.0
        for token in option:
            with torch.no_grad():
                logits = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits[0, -1]
            probability *= logits.double().softmax(0)[token].item()
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        joint.append(probability)
    assert answer.probabilities == pytest.approx([p / sum(joint) for p in joint], abs=1e-5)


def test_a_prompt_beyond_the_context_is_an_error_of_its_own(parts):
    model, processor, pictures = parts
    questions = [Question(0, "word " * 2000, Generate(4)), Question(0, PROMPTS[0], Generate(4))]
    long, short = ask(SharedPrefixEngine(model, processor, 8), pictures, questions)
    assert "this model's context has 1024" in long.error and not long.text
    assert short.error is None
    assert short.text == ask(PlainEngine(model, processor, 1), pictures, questions[1:])[0].text


def test_generation_ends_row_by_row(parts, monkeypatch):
    """Rows that have ended are dropped: the last forward passes hold fewer of them."""
    model, processor, pictures = parts
    rows, real = [], model.llm.forward

    def counted(*args, **kwargs):
        if kwargs.get("input_ids") is not None:
            rows.append(len(kwargs["input_ids"]))
        return real(*args, **kwargs)

    monkeypatch.setattr(model.generation_config, "eos_token_id", processor.tokenizer.eos_token_id)
    engine = SharedPrefixEngine(model, processor, 64)
    monkeypatch.setattr(model.llm, "forward", counted)
    questions = asked([Generate(24)])
    ask(engine, pictures, questions)
    assert rows[0] == len(questions) and rows[-1] < 0.75 * rows[0] and rows == sorted(rows, reverse=True)


def test_a_llava_model_answers_through_its_own_processor(tmp_path):
    """Any image-text-to-text model: a small LLaVA with new weights, saved and loaded by name."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )  # fmt: skip

    from eval.generate_engine import load_engine
    from prismatic.models.llm import load_tokenizer

    tokenizer = load_tokenizer("miniature")
    tokenizer.chat_template = None
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                       num_attention_heads=2, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=48, patch_size=16)  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token)
    )
    size = {"height": 48, "width": 48}
    images = CLIPImageProcessor(size=size, crop_size=size)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}{% if c.type == 'image' %}"
        "<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% else %} ASSISTANT: {{ m.content[0].text }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(images, tokenizer, patch_size=16, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, chat_template=template)  # fmt: skip
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)

    pictures = [Image.fromarray(scene(77, index).image) for index in range(3)]
    questions = [Question(image, prompt, kind) for image in range(3) for prompt, kind in
                 zip(PROMPTS, (Generate(6), LETTERS, LONG, Generate(6), LETTERS), strict=True)]  # fmt: skip
    loaded = {"dtype": torch.float32, "device": "cpu"}
    one = ask(load_engine(str(tmp_path), batch_size=8, strict=True, **loaded), pictures, questions)
    many = ask(load_engine(str(tmp_path), batch_size=8, **loaded), pictures, questions)
    assert [answer.text for answer in many] == [answer.text for answer in one]
    for a, b in zip(many, one, strict=True):
        assert a.probabilities == (b.probabilities and pytest.approx(b.probabilities, abs=1e-5))

    processor.chat_template = None
    with pytest.raises(ValueError, match="LlavaProcessor has no chat template"):
        PlainEngine(model, processor, 1)


@pytest.mark.parametrize("kind", [Generate(6), LETTERS])
def test_what_just_fits_the_context_is_answered(parts, kind):
    model, processor, pictures = parts
    prompt, new = PROMPTS[0], kind.max_new_tokens if isinstance(kind, Generate) else 1
    longest = processor.ask([prompt], pictures[:1])["input_ids"].shape[1] + new
    config, before = model.config.text_config, model.config.text_config.max_position_embeddings
    try:
        for engine in (SharedPrefixEngine(model, processor, 2), PlainEngine(model, processor, 2)):
            for limit, fits in ((longest, True), (longest - 1, False)):
                config.max_position_embeddings = limit
                (answer,) = ask(engine, pictures[:1], [Question(0, prompt, kind)])
                assert (answer.error is None) == fits, f"{type(engine).__name__}: {answer.error}"
    finally:
        config.max_position_embeddings = before


def test_logits_are_padded_in_front():
    logits = torch.arange(12.0).reshape(2, 2, 3)
    padded = pad_left(logits, 4)
    assert padded.shape == (2, 4, 3) and torch.equal(padded[:, 2:], logits) and not padded[:, :2].any()
    assert torch.equal(pad_left(logits, 2), logits)
