"""The processor as Hugging Face clients call it; its ids are those that training makes."""

import base64
import copy
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_tokenizers import CHATML, byte_level, byte_level_with, train_sentencepiece
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM, pipeline

import prismatic
from prismatic.miniature.scenes import scene
from prismatic.models.processing import encode_row
from prismatic.text.prompts import chat_template, without_marks
from prismatic.text.speech import style_of
from prismatic.text.tokenizers import from_sentencepiece

PICTURES = [Image.fromarray(scene(3, number).image) for number in range(3)]
TURNS = [
    ("user", "What color is the cross?"),
    ("assistant", "red"),
    ("user", "Is it?\nAnswer yes or no."),
    ("assistant", "yes, it is"),
]


def processor_of(kind: str, folder) -> prismatic.PrismaticProcessor:
    if kind in ("chatml", "byte-level"):
        tokenizer = byte_level_with(["<|im_start|>", "<|im_end|>"])
        tokenizer.chat_template = CHATML if kind == "chatml" else chat_template("vicuna-v1.5")
    elif kind == "phi-2":
        tokenizer = copy.deepcopy(byte_level("<|endoftext|>", "<|endoftext|>"))
        tokenizer.chat_template = chat_template(kind)
    else:
        tokenizer = from_sentencepiece(train_sentencepiece(folder))
        tokenizer.chat_template = chat_template(kind)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    return prismatic.build("miniature", str(folder / "llm"), "linear")[1]


@pytest.fixture(scope="module", params=["pure", "llama2-chat", "phi-2", "chatml", "byte-level"])
def processor(request, tmp_path_factory):
    return processor_of(request.param, tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def mini():
    return prismatic.load("miniature")


def chat(turns=TURNS, images=(0,), number=0):
    """Messages in parts, with `images` in the turn of this number."""
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[number]["content"] = [{"type": "image", "image": PICTURES[i]} for i in images] + messages[number][
        "content"
    ]
    return messages


def trained(processor, turns=TURNS, images=1, max_length=4096):
    """Ids and labels of the same conversation as training writes them."""
    row = {"id": "x", "conversations": [{"role": role, "content": text} for role, text in turns]}
    row |= {"image": ["a.png"] * images} if images else {}
    return encode_row(row, processor, max_length, "finetune")


def tokenized(processor, messages, **options):
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


class TestChat:
    @pytest.mark.parametrize(("images", "number"), [((0,), 0), ((0, 1), 0), ((0,), 2), ((), 0)])
    def test_conversations_and_what_the_assistant_says_are_those_of_training(self, processor, images, number):
        inputs = tokenized(processor, chat(images=images, number=number), return_assistant_tokens_mask=True)
        ids, labels = trained(processor, images=len(images))
        assert inputs["input_ids"][0].tolist() == ids
        assert inputs["assistant_masks"][0].tolist() == [int(label >= 0) for label in labels]
        assert len(inputs.get("pixel_values", [])) == len(images)

    def test_questions_are_those_that_are_asked(self, processor):
        asked = processor.ask([[{"role": r, "content": t} for r, t in TURNS[:3]]], [PICTURES[0]])
        inputs = tokenized(processor, chat(TURNS[:3]), add_generation_prompt=True)
        assert torch.equal(inputs["input_ids"], asked["input_ids"])
        assert torch.equal(inputs["pixel_values"], asked["pixel_values"])

    def test_text_first_and_tokens_later(self, processor):
        """As TRL does, which turns off special tokens because templates may have written BOS."""
        messages = [chat(TURNS[:3]), chat(TURNS[:1], images=())]
        texts = processor.apply_chat_template(messages, add_generation_prompt=True)
        later = processor(images=[PICTURES[0]], text=texts, add_special_tokens=False)
        assert torch.equal(later["input_ids"], tokenized(processor, messages, add_generation_prompt=True)["input_ids"])
        assert torch.equal(processor(images=[PICTURES[0]], text=texts)["input_ids"], later["input_ids"])

    def test_words_that_look_like_tokens_are_words(self, processor):
        odd = f"What is <image> and {processor.tokenizer.eos_token}?"
        inputs = tokenized(processor, chat([("user", odd)]), add_generation_prompt=True)["input_ids"][0].tolist()
        placeholders = processor.num_image_tokens
        assert inputs.count(processor.image_token_id) == placeholders
        assert inputs.count(processor.tokenizer.eos_token_id) == trained(processor, [("user", "What?")])[0].count(
            processor.tokenizer.eos_token_id
        )
        written = processor.tokenizer.decode([id for id in inputs if id != processor.image_token_id])
        assert "What is <image> and" in written
        masked = tokenized(processor, chat([("user", odd), ("assistant", "no")]), return_assistant_tokens_mask=True)
        said = masked["input_ids"][0][masked["assistant_masks"][0].bool()]
        assert processor.tokenizer.decode(said, skip_special_tokens=True).strip() == "no"

    def test_batches_are_padded_single_conversations(self, processor):
        chats = [chat(), chat(TURNS[:2], images=()), chat(TURNS[:2], images=(1, 2))]
        options = {"processor_kwargs": {"padding_side": "right"}, "return_assistant_tokens_mask": True}
        batch = tokenized(processor, chats, **options)
        for number, messages in enumerate(chats):
            alone = tokenized(processor, messages, **options)
            length = alone["input_ids"].shape[1]
            for key in ("input_ids", "attention_mask", "assistant_masks"):
                assert torch.equal(batch[key][number, :length], alone[key][0]), key
            assert not any(batch[key][number, length:].any() for key in ("attention_mask", "assistant_masks"))
        assert len(batch["pixel_values"]) == 3

    def test_parts_of_openai(self, processor, tmp_path):
        buffer = io.BytesIO()
        PICTURES[0].save(buffer, "PNG")
        PICTURES[0].save(tmp_path / "a.png")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        expected = tokenized(processor, chat(TURNS[:1]))
        for part in (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
            {"type": "image", "path": str(tmp_path / "a.png")},
            {"type": "image", "base64": encoded},
            {"type": "image", "url": (tmp_path / "a.png").as_posix()},
        ):
            messages = [{"role": "user", "content": [part, {"type": "text", "text": TURNS[0][1]}]}]
            got = tokenized(processor, messages)
            assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in got)

    def test_answers_that_are_begun_are_continued(self, processor):
        ids = tokenized(processor, chat(TURNS[:2]), continue_final_message=True)["input_ids"][0].tolist()
        whole, labels = trained(processor, TURNS[:2])
        end = max(i for i, label in enumerate(labels) if label >= 0)
        while labels[end] in processor.tokenizer.all_special_ids or end >= len(ids):
            end -= 1
        assert ids == whole[: len(ids)] and len(ids) > end

    def test_orders_that_training_does_not_know_have_no_mask(self, processor):
        messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
        with pytest.raises(ValueError, match="otherwise than training does|refuses the conversation"):
            tokenized(processor, messages, return_assistant_tokens_mask=True)


class TestCall:
    def test_images_of_every_kind_are_the_same(self, mini, tmp_path):
        processor, picture = mini[1], PICTURES[0]
        picture.save(tmp_path / "a.png")
        array = np.asarray(picture)
        expected = processor(images=picture, text="<image>a")["pixel_values"]
        for image in (
            array,
            array.transpose(2, 0, 1),
            array / 255,
            torch.from_numpy(array.copy()),
            torch.from_numpy(array.transpose(2, 0, 1) / 255),
            str(tmp_path / "a.png"),
            tmp_path / "a.png",
            (tmp_path / "a.png").read_bytes(),
            {"bytes": (tmp_path / "a.png").read_bytes(), "path": None},
        ):
            assert torch.equal(processor(images=image, text="<image>a")["pixel_values"], expected), type(image)
            assert torch.equal(processor.image_processor(image)["pixel_values"], expected)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("nowhere.png", "neither an existing file"),
            ("http://127.0.0.1:9/a.png", "cannot fetch the image .*give a path or a data URL"),
            (b"no image", "cannot read the image"),
            (np.zeros((2, 2, 7)), r"shape \[2, 2, 7\]"),
            (np.full((2, 2, 3), -1.0), "unnormalised"),
            (3, "an image is int"),
        ],
    )
    def test_images_that_are_none(self, mini, image, message):
        with pytest.raises(ValueError, match=message):
            mini[1](images=[image], text="<image>a")

    def test_a_list_for_each_prompt(self, mini):
        processor, (a, b, _) = mini[1], PICTURES
        texts = ["In: a\nOut:", "In: b\nOut:", "In: c\nOut:"]
        batch = processor(images=[[a], [], [a, b]], text=texts)
        marked = processor(images=[a, a, b], text=["<image>" + texts[0], texts[1], "<image><image>\n" + texts[2]])
        assert torch.equal(batch["input_ids"], marked["input_ids"])
        counts = (batch["input_ids"] == processor.image_token_id).sum(1) // processor.num_image_tokens
        assert counts.tolist() == [1, 0, 2] and len(batch["pixel_values"]) == 3
        with pytest.raises(ValueError, match="give one image each"):
            processor(images=[[a, b], []], text=["<image>x", "<image>y"])

    def test_padding_truncation_and_types(self, mini):
        processor = mini[1]
        size, text = processor.num_image_tokens, "In: What is there?\nOut:"
        whole = processor(images=PICTURES[0], text=text)["input_ids"][0]
        options = {"images": PICTURES[0], "text": text}
        cut = processor(**options, truncation=True, max_length=size + 4)["input_ids"][0]
        assert torch.equal(cut, whole[: size + 4])
        with pytest.raises(ValueError, match=f"would cut the {size} placeholders"):
            processor(**options, truncation=True, max_length=size)
        nested = processor(**options, text_kwargs={"padding": "max_length", "max_length": size + 40})
        assert nested["input_ids"].shape == (1, size + 40) and nested["attention_mask"].sum() == len(whole)
        assert processor(**options, pad_to_multiple_of=16)["input_ids"].shape[1] % 16 == 0
        lists = processor(**options, return_tensors=None, return_mm_token_type_ids=True)
        assert lists["input_ids"] == [whole.tolist()]
        assert lists["mm_token_type_ids"] == [[int(id == processor.image_token_id) for id in whole]]
        spans = processor(**options, return_offsets_mapping=True)["offset_mapping"][0].tolist()
        assert [text[a:b] for a, b in spans if b][-1] in text and max(b for _, b in spans) == len(text)
        assert processor(images=PICTURES[0]).keys() == {"pixel_values"}

    def test_attributes(self, mini):
        processor = mini[1]
        found = processor._get_num_multimodal_tokens([(10, 20), (300, 300)])
        assert found["num_image_tokens"] == [processor.num_image_tokens] * 2 and found["num_image_patches"] == [1, 1]
        side = processor(images=PICTURES[0])["pixel_values"].shape[-1]
        assert processor.image_processor.size == {"height": side, "width": side}


def test_processors_that_earlier_versions_saved_load(mini, tmp_path):
    processor = mini[1]
    processor.save_pretrained(tmp_path)
    (template,) = tmp_path.glob("chat_template.jinja")
    template.write_text(without_marks(template.read_text()))
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.chat_template == processor.chat_template and "generation" in again.chat_template
    assert style_of(again.tokenizer) == style_of(processor.tokenizer) != "its own"
    assert json.loads((tmp_path / "processor_config.json").read_text())["num_image_tokens"] == again.num_image_tokens


def test_pipelines(mini, tmp_path):
    model, processor = mini
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path), max_new_tokens=6)
    questions = [[(role, text) for role, text in TURNS[:1]], [("user", "How many objects are there?")]]
    asked = processor.ask([turns[0][1] for turns in questions], PICTURES[:2])
    new = model.generate(**asked, max_new_tokens=6, do_sample=False)[:, asked["input_ids"].shape[1] :]
    expected = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    chats = [chat(turns, images=(number,)) for number, turns in enumerate(questions)]
    options = {"return_full_text": False, "generate_kwargs": {"do_sample": False}}
    alone = [ask(text=messages, **options)[0]["generated_text"].strip() for messages in chats]
    assert alone == expected
    together = ask(text=chats, batch_size=2, **options)
    assert [found[0]["generated_text"].strip() for found in together] == expected
    texts = processor.apply_chat_template(chats, add_generation_prompt=True)
    PICTURES[0].save(tmp_path / "a.png")
    (found,) = ask(images=str(tmp_path / "a.png"), text=texts[0], **options)
    assert found["generated_text"].strip() == expected[0]
