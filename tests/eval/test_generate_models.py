"""Models of transformers: those without a chat template, encoder-decoders, several images, limits of pixels."""

import itertools
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_adapters import LETTERS, LOADED, LONG, PROMPTS, TEXT, idefics3, ids, qwen2_vl, saved, small_tokenizer

from eval.engine import Question
from eval.generate_engine import load_engine
from eval.task import Generate
from prismatic.miniature.scenes import scene

# The chat template of llava-hf's LLaVA 1.5.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 48, "patch_size": 16, "initializer_range": 0.3}  # fmt: skip
SIZE = {"height": 48, "width": 48}


def llama(tokenizer):
    known = ids(tokenizer, pad_token_id="<|pad|>", bos_token_id="<s>", eos_token_id="</s>")
    return {"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **known}


def llava(monkeypatch):
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = small_tokenizer("<s>", "</s>", "<image>")
    images = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=SIZE)
    processor = LlavaProcessor(images, tokenizer, patch_size=16, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE)  # fmt: skip
    config = LlavaConfig(vision_config=CLIP, text_config=llama(tokenizer), **ids(tokenizer, image_token_id="<image>"))
    return LlavaForConditionalGeneration(config), processor


def llava_next(monkeypatch):
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer, grids = small_tokenizer("<s>", "</s>", "<image>"), [[48, 96], [96, 48], [96, 96]]
    images = LlavaNextImageProcessor(size={"shortest_edge": 48}, crop_size=SIZE, image_grid_pinpoints=grids)
    processor = LlavaNextProcessor(images, tokenizer, patch_size=16, vision_feature_select_strategy="default",
                                   num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE)  # fmt: skip
    config = LlavaNextConfig(vision_config=CLIP, text_config=llama(tokenizer), image_grid_pinpoints=grids,
                             **ids(tokenizer, image_token_id="<image>"))  # fmt: skip
    return LlavaNextForConditionalGeneration(config), processor


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "initializer_range": 0.3}  # fmt: skip


def blip_parts(text, side):
    """Tokenizer, and a configuration whose language model is of the kind `text`."""
    tokenizer = small_tokenizer("<s>", "</s>", "<image>")
    tokenizer.init_kwargs["padding_side"] = side  # as it stands in the files of released models
    known = {"vocab_size": len(tokenizer)} | ids(tokenizer, pad_token_id="<|pad|>", eos_token_id="</s>")
    kinds = {
        "llama": llama(tokenizer),
        "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2, "init_std": 0.3,
                "num_attention_heads": 4, "max_position_embeddings": 256, "bos_token_id": 0, **known},
        "t5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "initializer_factor": 1.5,
               **known, "decoder_start_token_id": known["pad_token_id"]},
    }  # fmt: skip
    vision = SMALL | {"image_size": 48, "patch_size": 16}
    config = {"text_config": {"model_type": text} | kinds[text], "vision_config": vision, "num_query_tokens": 4,
              "qformer_config": SMALL | {"vocab_size": len(tokenizer)}, "image_token_index": ids(
                  tokenizer, image="<image>")["image"]}  # fmt: skip
    return tokenizer, config


def seeing(model):
    """The model with query tokens, which are zeros before training, and more to see than random weights let through."""
    torch.nn.init.normal_(model.query_tokens)
    model.language_projection.weight.data.mul_(20)
    return model


def instructblip(text, side="left"):
    def make(monkeypatch):
        from transformers import (
            BlipImageProcessor,
            InstructBlipConfig,
            InstructBlipForConditionalGeneration,
            InstructBlipProcessor,
        )

        tokenizer, config = blip_parts(text, side)
        questions = small_tokenizer("<s>", "</s>")
        processor = InstructBlipProcessor(BlipImageProcessor(size=SIZE), tokenizer, questions, num_query_tokens=4)
        return seeing(InstructBlipForConditionalGeneration(InstructBlipConfig(**config))), processor

    make.__name__ = f"instructblip-{text}"
    return make


def blip_2(text):
    def make(monkeypatch):
        from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

        tokenizer, config = blip_parts(text, "right")
        processor = Blip2Processor(BlipImageProcessor(size=SIZE), tokenizer)  # as old files, without num_query_tokens
        return seeing(Blip2ForConditionalGeneration(Blip2Config(**config))), processor

    make.__name__ = f"blip-2-{text}"
    return make


BLIPS = [instructblip("llama"), instructblip("t5"), blip_2("opt"), blip_2("t5")]
names = {"ids": lambda make: make.__name__}
SIZES = [(96, 96), (128, 48), (40, 90), (64, 64)]


def picture(number, size=(96, 96)):
    return Image.fromarray(scene(77, number).image).resize(size)


def same(many, one):
    assert [answer.text for answer in many] == [answer.text for answer in one]
    for a, b in zip(many, one, strict=True):
        assert a.error == b.error and a.probabilities == (b.probabilities and pytest.approx(b.probabilities, abs=1e-5))


@pytest.mark.parametrize("family", [llava, llava_next, *BLIPS], **names)
def test_batches_equal_single_questions(family, tmp_path, monkeypatch):
    folder = saved(family, tmp_path, monkeypatch)
    pictures = [picture(number, size) for number, size in enumerate(SIZES)]
    kinds = (Generate(10), LETTERS, LONG, Generate(3))
    questions = [Question(image, PROMPTS[(image + number) % 3], kind) for number, kind in enumerate(kinds)
                 for image in range(4)]  # fmt: skip
    # Questions about a picture differ: features that depend on the question may not be shared.
    questions += [Question(0, prompt, kind) for prompt in PROMPTS for kind in (LETTERS, Generate(10))]
    one = load_engine(folder, batch_size=8, strict=True, **LOADED).answer(pictures, questions)
    engine = load_engine(folder, batch_size=8, **LOADED)
    for start in range(0, len(questions), 11):  # several calls, as a run makes them
        some = slice(start, start + 11)
        same(engine.answer(pictures, questions[some]), one[some])
    assert all(answer.error is None for answer in one)
    assert len({answer.text for answer in one if answer.probabilities is None}) >= 4, "answers hardly differ"
    for kind in (LETTERS, LONG):
        said = [a.probabilities for a, q in zip(one, questions, strict=True) if q.kind == kind]
        assert max(abs(x - y) for x, y in zip(said[0], said[1], strict=True)) > 1e-4, "pictures are not seen"


@pytest.mark.parametrize("family", BLIPS, **names)
def test_answers_of_models_without_a_chat_template_are_those_of_their_own_processor(family, tmp_path, monkeypatch):
    folder = saved(family, tmp_path, monkeypatch)
    engine = load_engine(folder, batch_size=8, **LOADED)
    (free, chosen) = engine.answer([picture(1)], [Question(0, PROMPTS[0], kind) for kind in (Generate(12), LONG)])
    processor, model = engine.processor, engine.model
    prompt = PROMPTS[0] if family.__name__.startswith("instructblip") else f"Question: {PROMPTS[0]} Answer:"
    inputs = processor(images=picture(1), text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    decodes = family.__name__.endswith("t5")
    new = tokens if decodes else tokens[:, inputs["input_ids"].shape[1] :]
    assert free.text == processor.tokenizer.decode(new[0], skip_special_tokens=True).strip()
    joint = []
    for option in LONG.options:  # the loss is the mean over the tokens of the answer
        with torch.no_grad():
            if decodes:
                labels = processor.tokenizer(option, return_tensors="pt")["input_ids"]
                loss = model(**inputs, labels=labels).loss
            else:
                said = processor.tokenizer(f" {option}", return_tensors="pt")["input_ids"]
                ids = torch.cat([inputs["input_ids"], said], dim=1)
                labels = torch.cat([torch.full_like(inputs["input_ids"], -100), said], dim=1)
                whole = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                loss = model(**whole, labels=labels).loss
        joint.append(torch.exp(-loss.double() * (labels >= 0).sum()).item())
    assert chosen.probabilities == pytest.approx([p / sum(joint) for p in joint], abs=1e-5)


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in (llava_next, idefics3)]


@pytest.mark.parametrize("family", [llava, qwen2_vl, *SLOW], **names)
def test_several_images_a_question(family, tmp_path, monkeypatch):
    folder = saved(family, tmp_path, monkeypatch)
    sets = [picture(0), [picture(1), picture(2, (128, 48))], [picture(2, (128, 48)), picture(1)],
            [picture(3), picture(0), picture(1, (40, 90))]]  # fmt: skip
    questions = [Question(at, prompt, kind) for prompt in PROMPTS[:2] for at in range(4)
                 for kind in (Generate(8), LETTERS, LONG)]  # fmt: skip
    one = load_engine(folder, batch_size=8, strict=True, **LOADED)
    expected = one.answer([one.prepare(some) for some in sets], questions)
    engine = load_engine(folder, batch_size=8, **LOADED)
    same(engine.answer([engine.prepare(some) for some in sets], questions), expected)
    same(one.answer([[some] if isinstance(some, Image.Image) else some for some in sets], questions), expected)
    inputs = engine._read(sets, [Question(at, PROMPTS[0], LETTERS) for at in range(4)])
    mark = engine.model.config.image_token_id
    tokens = (inputs["input_ids"] == mark).sum(1).tolist()
    assert tokens[0] > 0 and tokens[1] == tokens[2] > tokens[0] and tokens[3] > tokens[1]
    letters = [answer.probabilities for answer in expected[1:12:3]]
    assert letters[1] != pytest.approx(letters[2], abs=1e-4), "the order of images does not matter"


@pytest.mark.parametrize("family", BLIPS[::2], **names)
def test_models_of_one_image_say_so(family, tmp_path, monkeypatch):
    engine = load_engine(saved(family, tmp_path, monkeypatch), batch_size=8, **LOADED)
    sets = [picture(0), [picture(0), picture(1)], [picture(2)]]
    answers = engine.answer(sets, [Question(at, PROMPTS[0], Generate(4)) for at in range(3)])
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    assert answers[1].error.endswith("ForConditionalGeneration takes one image a question, this has 2")


def test_several_images_of_ours():
    engine, one = (load_engine("miniature", batch_size=8, strict=True, **LOADED) for _ in range(2))
    engine.batch_size = 4
    sets = [picture(0), [picture(1), picture(2)], [picture(2), picture(1), picture(0)]]
    questions = [Question(at, prompt, kind) for prompt in PROMPTS for at in range(3) for kind in (Generate(8), LETTERS)]
    expected = one.answer(sets, questions)
    same(engine.answer(sets, questions), expected)
    for question, answer in list(zip(questions, expected, strict=True))[::2]:
        inputs = one.processor.ask([question.prompt], [sets[question.image]])
        new = one.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == one.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_pictures_are_scaled_down_to_max_pixels(tmp_path, monkeypatch):
    folder = saved(qwen2_vl, tmp_path, monkeypatch)
    for most, expected in ((None, 96 * 96), (64 * 64, 64 * 64), (48 * 48, 48 * 48)):
        engine = load_engine(folder, batch_size=8, max_pixels=most, **LOADED)
        inputs = engine._inputs([picture(0, (300, 300))], [engine.text_of(PROMPTS[0])])
        assert inputs["image_grid_thw"].prod() * 8 * 8 == expected
    with pytest.raises(ValueError, match="--max_pixels is 500: Qwen2VLImageProcessor takes no .* less than 1,024 "):
        load_engine(folder, batch_size=8, max_pixels=500, **LOADED)


@pytest.mark.parametrize("family", [llava, "miniature"])
def test_who_knows_no_max_pixels_is_named(family, tmp_path, monkeypatch):
    name = family if isinstance(family, str) else saved(family, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"^\w+ImageProcessor knows no max_pixels: leave --max_pixels out"):
        load_engine(name, batch_size=8, max_pixels=1000, **LOADED)


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    folder = saved(llava, tmp_path, monkeypatch)
    weights = load_file(f"{folder}/model.safetensors")
    dropped = next(name for name in weights if "projector" in name)
    save_file({name: x for name, x in weights.items() if name != dropped}, f"{folder}/model.safetensors")
    with pytest.raises(ValueError, match="lacks 1 weights of a LlavaForConditional.*projector.* llava-hf publishes"):
        load_engine(folder, batch_size=8, **LOADED)


def test_a_blip_without_image_tokens_would_see_nothing(tmp_path, monkeypatch):
    folder = saved(BLIPS[2], tmp_path, monkeypatch)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_token_index": None}))
    with pytest.raises(ValueError, match="Blip2ForConditionalGeneration names no image_token_id.*newer revision"):
        load_engine(folder, batch_size=8, **LOADED)


def test_the_prompt_of_a_file(tmp_path, monkeypatch):
    """Another prompt than that of the model's authors, as `--prompt_style FILE.jinja` sets it."""
    folder = saved(BLIPS[2], tmp_path / "model", monkeypatch)
    short = "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content[-1].text }} Short answer:{% else %}"
    (tmp_path / "short.jinja").write_text(short + " {{ m.content[-1].text }}{% endif %}{% endfor %}")
    engine = load_engine(folder, batch_size=2, prompt_style=str(tmp_path / "short.jinja"), **LOADED)
    assert engine.text_of("Is it?") == "Question: Is it? Short answer:"
    plain = load_engine(folder, batch_size=2, **LOADED)
    assert plain.text_of("Is it?", "Yes") == "Question: Is it? Answer: Yes"
    assert list(itertools.chain(*plain.option_ids(["A", "B"]))) == plain.processor.tokenizer(" A B")["input_ids"]
