"""Other families of models: batches answer as single questions do, through each family's own processor."""

import copy

import pytest
import torch
from PIL import Image
from small_tokenizers import byte_level

from eval.engine import Question
from eval.generate_engine import load_engine
from eval.task import Choose, Generate
from prismatic.miniature.scenes import scene

# The chat templates of SmolVLM and Qwen2-VL, for messages whose content is a list.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3}  # fmt: skip


def small_tokenizer(bos, eos, *special):
    tokenizer = copy.deepcopy(byte_level(bos, eos))
    tokenizer.add_special_tokens({"pad_token": "<|pad|>", "extra_special_tokens": list(special)})
    return tokenizer


def ids(tokenizer, **tokens):
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def idefics_parts():
    """Tokenizer, image processor, and the settings of text and vision that Idefics3 and SmolVLM share."""
    rows = [f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)]
    tokenizer = small_tokenizer("<|im_start|>", "<end_of_utterance>", "<image>", "<fake_token_around_image>",
                                "<global-img>", "<video>", *rows)  # fmt: skip
    sizes = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}
    known = ids(tokenizer, pad_token_id="<|pad|>", bos_token_id="<|im_start|>", eos_token_id="<end_of_utterance>")
    text = {"model_type": "llama", "vocab_size": len(tokenizer), **TEXT, **known}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 48, "patch_size": 8, "initializer_range": 0.3}  # fmt: skip
    shared = {"text_config": text, "vision_config": vision, "scale_factor": 2}
    return tokenizer, sizes, shared | ids(tokenizer, image_token_id="<image>", pad_token_id="<|pad|>")


def idefics3(monkeypatch):
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer, sizes, config = idefics_parts()
    processor = Idefics3Processor(Idefics3ImageProcessor(**sizes), tokenizer, 9, chat_template=SMOLVLM_TEMPLATE)
    return Idefics3ForConditionalGeneration(Idefics3Config(**config)), processor


def smolvlm(monkeypatch):
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    if processing_smolvlm.num2words is None:  # demanded by its processor, which only counts frames of videos with it
        monkeypatch.setattr(processing_smolvlm, "num2words", str)
    tokenizer, sizes, config = idefics_parts()
    processor = SmolVLMProcessor(SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor(), 9,
                                 chat_template=SMOLVLM_TEMPLATE)  # fmt: skip
    return SmolVLMForConditionalGeneration(SmolVLMConfig(**config)), processor


def qwen_parts():
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = small_tokenizer("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>",
                                "<|image_pad|>", "<|video_pad|>")  # fmt: skip
    tokenizer.bos_token = None
    sizes = {"patch_size": 8, "size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes),
                                 chat_template=QWEN_TEMPLATE)  # fmt: skip
    known = {"bos_token_id": None} | ids(tokenizer, pad_token_id="<|pad|>", eos_token_id="<|im_end|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": len(tokenizer), "rope_parameters": rope, **TEXT, **known}
    marks = ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    return processor, text, marks


def qwen2_vl(monkeypatch):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor, text, marks = qwen_parts()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2,
              "initializer_range": 0.3}  # fmt: skip
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **marks)), processor


def qwen2_5_vl(monkeypatch):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    processor, text, marks = qwen_parts()
    processor = Qwen2_5_VLProcessor(processor.image_processor, processor.tokenizer, processor.video_processor,
                                    chat_template=QWEN_TEMPLATE)  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_heads": 2,
              "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1], "initializer_range": 0.3}  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks))
    return model, processor


PROMPTS = [
    "What color is the cross?",
    "How many objects are there?\nAnswer the question using a single word or phrase.",
    "Is there a red circle to the left of the blue square? Answer yes or no.",
]
LETTERS = Choose(("A", "B", "C", "D"))
LONG = Choose(("a red circle", "a blue square of some size", "no", "yes"))
LOADED = {"dtype": torch.float32, "device": "cpu"}


def saved(family, folder, monkeypatch):
    torch.manual_seed(0)
    model, processor = family(monkeypatch)
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=[idefics3, smolvlm, qwen2_vl, qwen2_5_vl], ids=lambda make: make.__name__)
def folder(request, tmp_path, monkeypatch):
    """A small model of the family, with new weights, as `save_pretrained` leaves it."""
    return saved(request.param, tmp_path, monkeypatch)


def test_batches_equal_single_questions(folder):
    # Pictures of several shapes: rows then differ in their number of image tokens, or of tiles.
    sizes = [(96, 96), (128, 48), (40, 90), (64, 64)]
    pictures = [Image.fromarray(scene(77, i).image).resize(size) for i, size in enumerate(sizes)]
    questions = [Question(image, PROMPTS[(image + number) % 3], kind) for number, kind in
                 enumerate((Generate(10), LETTERS, LONG, Generate(3))) for image in range(len(pictures))]  # fmt: skip
    one = load_engine(folder, batch_size=8, strict=True, **LOADED).answer(pictures, questions)
    many = load_engine(folder, batch_size=8, **LOADED).answer(pictures, questions)
    assert [answer.text for answer in many] == [answer.text for answer in one]
    assert len({answer.text for answer in one if answer.probabilities is None}) >= 5, "answers hardly differ"
    for a, b in zip(many, one, strict=True):
        assert a.probabilities == (b.probabilities and pytest.approx(b.probabilities, abs=1e-5))
    for kind in (LETTERS, LONG):
        said = [a.probabilities for a, q in zip(one, questions, strict=True) if q.kind == kind]
        assert max(abs(x - y) for x, y in zip(said[0], said[1], strict=True)) > 1e-3, "pictures are not seen"


def test_pictures_are_encoded_once_and_prompts_read_once(folder, monkeypatch):
    engine = load_engine(folder, batch_size=4, **LOADED)
    tower = getattr(engine.model.model, "vision_model", None) or engine.model.model.visual
    seen = []
    tower.register_forward_hook(lambda *args: seen.append(1))
    lengths = []
    engine.model.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].shape[1])
    )
    pictures = [Image.fromarray(scene(77, i).image).resize((96, 64)) for i in range(2)]
    questions = [Question(n % 2, PROMPTS[n % 3], kind) for n in range(6) for kind in (LETTERS, LONG, Generate(3))]
    engine.answer(pictures, questions)
    assert engine.shared.encodes_once and engine.shared.reads_once
    assert len(seen) == 2 + 1, "each picture, and the first batch as the model does it"
    longest = max(map(len, engine.option_ids(LONG.options)))
    assert max(lengths[:1]) == 1 and sorted(set(lengths))[-1] <= longest, "logits of positions that nobody asked for"


def test_probabilities_of_long_options_are_products_along_the_tokens(folder):
    engine = load_engine(folder, batch_size=8, **LOADED)
    picture = Image.fromarray(scene(77, 0).image)
    (answer,) = engine.answer([picture], [Question(0, PROMPTS[0], LONG)])
    joint = []
    for option, token_ids in zip(LONG.options, engine.option_ids(LONG.options), strict=True):
        # Written out in full and read as one text, by the processor itself.
        text = engine.text_of(PROMPTS[0], option)
        text = text[: text.rindex(option) + len(option)]
        inputs = engine.processor(images=[[picture]], text=[text], return_tensors="pt")
        assert inputs["input_ids"][0, -len(token_ids) :].tolist() == token_ids
        with torch.no_grad():
            logits = engine.model(**inputs).logits[0, -len(token_ids) - 1 : -1].double().log_softmax(-1)
        joint.append(logits.gather(1, torch.tensor(token_ids)[:, None]).sum().exp().item())
    assert answer.probabilities == pytest.approx([p / sum(joint) for p in joint], abs=1e-5)


def test_bos_is_read_once_where_template_and_tokenizer_both_write_it(tmp_path, monkeypatch):
    from tokenizers.processors import TemplateProcessing

    engine = load_engine(saved(idefics3, tmp_path, monkeypatch), batch_size=8, **LOADED)
    bos = engine.processor.tokenizer.bos_token_id
    engine.processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    assert engine.processor.tokenizer("a")["input_ids"][0] == bos
    pictures, texts = [Image.fromarray(scene(77, 0).image)] * 2, [engine.text_of(prompt) for prompt in PROMPTS[:2]]
    assert ((engine._inputs(pictures, texts)["input_ids"] == bos).sum(1) == 1).all()


def test_a_package_that_a_processor_lacks_is_named(tmp_path, monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    folder = saved(smolvlm, tmp_path, monkeypatch)
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ValueError, match="pip install num2words"):
        load_engine(folder, batch_size=8, **LOADED)
