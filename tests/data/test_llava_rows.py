"""Which rows are read, what their images are, and that training, held-out questions and verify agree about it."""

import json

import pytest
import torch
from accelerate import Accelerator
from datasets import config as datasets_config
from PIL import Image

import prismatic
from prismatic.data import batching
from prismatic.data.conversation_dataset import ConversationDataset, open_data
from prismatic.data.llava_rows import row_problems, stray_marks
from prismatic.data.verify import verify
from prismatic.models.processing import encode_counting, encode_row
from prismatic.text.conversations import tokenize_conversation
from prismatic.training.held_out import generate_answers, read_items
from recipes.config.finetune import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


def turns(*texts, roles="hghghg"):
    names = {"h": "human", "g": "gpt", "s": "system"}
    return [{"from": names[role], "value": text} for role, text in zip(roles, texts, strict=False)]


def open_rows(folder, *rows, **options):
    for name, color in (("a", "red"), ("b", "blue"), ("c", "lime")):
        Image.new("RGB", (20, 30), color).save(folder / f"{name}.png")
    rows = [{"id": str(number)} | row for number, row in enumerate(rows)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return open_data(DataConfig(annotations=str(folder / "rows.json"), **options))[0]


READ = {  # texts of the turns, images, words "<image>" that are taken out
    "mark in front": (("<image>\nWhat is it?", "red"), ["a"], 0),
    "mark behind": (("What is it?\n<image>", "red"), ["a"], 0),
    "mark between": (("What does <image> show?", "red"), ["a"], 0),
    "no mark": (("What is it?", "red"), ["a"], 0),
    "two": (("<image><image>\nWhat differs?", "color"), ["a", "b"], 0),
    "two, between": (("What is in <image> and not in <image>?", "color"), ["a", "b"], 0),
    "two, no mark": (("What differs?", "color"), ["a", "b"], 0),
    "two turns": (("<image>\nWhat is it?", "red", "<image>\nAnd it?", "blue"), ["a", "b"], 0),
    "a word in text": (("What does the tag <image> mean?", "<image> is no HTML"), [], 2),
    "a word beside a mark": (("<image>\nIs the tag <image> in it?", "no"), ["a"], 1),
    "unanswered in the end": (("What?", "red", "Why?"), [], 0),
}
REFUSED = {
    "a mark without an image": (("<image>\nWhat is it?", "red"), [], "1 \"<image>\" for 0 images"),
    "behind": (("What is it? <image> ", "red"), [], "1 \"<image>\" for 0 images"),
    "two marks, one image": (("<image>\n<image>\nWhat?", "red"), ["a"], "2 \"<image>\" for 1 images"),
    "in two turns": (("<image>\nWhat?", "red", "And this? <image>", "x"), ["a"], "2 \"<image>\" for 1 images"),
    "one mark, two images": (("<image>\nWhat?", "red"), ["a", "b"], "1 \"<image>\" for 2 images"),
    "no answer": (("What?",), [], "a question without an answer"),
}  # fmt: skip


def row(texts, images):
    return {"image": [f"{name}.png" for name in images], "conversations": turns(*texts)}


@pytest.mark.parametrize("name", READ)
def test_rows_that_are_read(name, tmp_path):
    texts, images, stray = READ[name]
    source = open_rows(tmp_path, row(texts, images))
    assert source.image_counts.tolist() == [len(images)] and stray_marks(source[0]) == stray
    assert source.stray_rows == (stray > 0)
    found = verify(tmp_path / "rows.json", tmp_path)
    assert not any(found.problems.values()) and found.counts["rows, stray <image>"] == (stray > 0)
    assert found.counts["rows, several images"] == (len(images) > 1) and found.sizes.total() == len(images)
    assert found.counts["text-only rows"] == (not images)
    assert found.counts["unanswered questions"] == len(texts) % 2


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_are_refused(name, tmp_path):
    texts, images, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"1 of 2 rows cannot be read; row 1 .*{message}.*verify lists them"):
        open_rows(tmp_path, row(("What?", "red"), []), row(texts, images))
    source = ConversationDataset(tmp_path / "rows.json", tmp_path)  # as verify opens it
    with pytest.raises(ValueError, match=message):
        read_items(source, 5)
    assert sum(map(len, verify(tmp_path / "rows.json", tmp_path).problems.values())) == 1


@pytest.mark.parametrize(
    ("roles", "refused"),
    [("hg", 0), ("shg", 0), ("hghg", 0), ("gh", 1), ("hh", 1), ("hsg", 1), ("hgg", 1), ("s", 1)],
)
def test_orders_of_turns(roles, refused):
    conversation = turns(*roles, roles=roles)
    assert len(list(row_problems({"conversations": conversation}))) == refused


def test_marks_are_counted_in_linear_time():
    text = "<image>x" * 100_000
    assert stray_marks({"conversations": turns(text, "a")}) == 100_000
    assert not list(row_problems({"conversations": turns("a" + text, "a")}))


def test_keys_of_chat_messages_are_those_of_llava(tmp_path):
    texts = ("<image>\nWhat is it?", "red")
    chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    source = open_rows(tmp_path, {"image": "a.png", "conversations": chat}, row(texts, ["a"]))
    _, processor = prismatic.build("miniature", "miniature", "linear")
    one, other = (encode_row(source[n], processor, 100, "finetune") for n in (0, 1))
    assert one == other and read_items(source, 2)[0].question == texts[0]


def test_images_under_a_key_that_is_not_read_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"row 0 has images \['a.png'\], which are not read"):
        open_rows(tmp_path, {"images": ["a.png"], "conversations": turns("<image>\nWhat?", "red")})


def test_missing_images_are_told_before_anything_is_built(tmp_path):
    rows = [row(("What?", "red"), ["a"]), row(("What?", "red"), ["gone"])]
    with pytest.raises(ValueError, match=r"1 of 2 images of .* are missing, such as .*gone.png; complete the download"):
        open_rows(tmp_path, *rows)
    source = open_rows(tmp_path, *rows, on_bad_image="skip")
    with pytest.raises(ValueError, match="are missing"):  # a held-out question is always answered
        open_data(DataConfig(annotations=str(tmp_path / "rows.json"), held_out=str(tmp_path / "rows.json"),
                             on_bad_image="skip"))  # fmt: skip
    assert len(source) == 2
    with pytest.raises(ValueError, match="1 of 1 images"):
        open_rows(tmp_path, rows[1], on_bad_image="skip")
    (tmp_path / "folder.png").mkdir(), (tmp_path / "link.png").symlink_to(tmp_path / "nothing")
    for name in ("folder", "link"):
        with pytest.raises(ValueError, match=f"1 of 1 images .* {tmp_path}/{name}.png"):
            open_rows(tmp_path, row(("What?", "red"), [name]))
    assert len(open_rows(tmp_path, {"image": "./a.png/", "conversations": turns("What?", "red")})) == 1
    with pytest.raises(ValueError, match="refused; expected a path relative to the image root"):
        open_rows(tmp_path, row(("What?", "red"), ["../a"]))


def test_several_images_are_seen_in_order(tmp_path):
    """In training and in answers: placeholders and pixels of each, before the text, as embeddings by hand have them."""
    source = open_rows(tmp_path, row(READ["two"][0], ["a", "b"]), row(("Which?", "red"), []), row(("It?", "x"), ["c"]))
    torch.manual_seed(0)
    model, processor = prismatic.build("miniature", "miniature", "linear")
    model.eval()
    transform = processor.image_processor.transform
    examples = batching.TrainingExamples(source, lambda r: encode_row(r, processor, 100, "finetune"), transform)
    batch = batching.collate_padded([examples[n] for n in range(3)], processor.tokenizer.pad_token_id)
    assert len(batch["pixel_values"]) == 3 and batch["cut_rows"] == batch["cut_tokens"] == 0
    tokens, count = processor.num_image_tokens, (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    assert count == [2 * tokens, 0, tokens]
    pictures = [transform(Image.open(tmp_path / f"{name}.png")) for name in "ab"]
    with torch.inference_mode():
        features = model.get_image_features(torch.stack(pictures)).pooler_output.flatten(0, 1)
        text = encode_row(source[0] | {"image": []}, processor, 100, "finetune")[0]
        words = model.get_input_embeddings()(torch.tensor(text))
        by_hand = model.llm(inputs_embeds=torch.cat([words[:1], features, words[1:]])[None]).logits
        inputs = {key: batch[key][:1] for key in ("input_ids", "attention_mask")}
        logits = model(**inputs, pixel_values=batch["pixel_values"][:2]).logits[:, : by_hand.shape[1]]
    torch.testing.assert_close(logits, by_hand)

    asked = processor.ask(["What differs?", "It?"], [[Image.open(tmp_path / f"{name}.png") for name in "ab"], None])
    marked = processor(
        text="<image><image>In: What differs?\nOut:", images=[Image.open(tmp_path / f"{n}.png") for n in "ab"]
    )
    assert torch.equal(asked["input_ids"][0], marked["input_ids"][0]) and len(asked["pixel_values"]) == 2
    assert torch.equal(asked["pixel_values"], torch.stack(pictures))
    with pytest.raises(ValueError, match="1 images for 2 <image> in the prompts"):
        processor(text="<image><image>a", images=[Image.open(tmp_path / "a.png")])


def test_held_out_questions_keep_their_system_message(tmp_path):
    source = open_rows(
        tmp_path,
        {"image": "a.png", "conversations": turns("Be brief.", "<image>\nWhat?", "red", roles="shg")},
        {"image": ["a.png", "b.png"], "conversations": turns("<image><image>Which?", "left", "Why?")},
    )
    one, two = read_items(source, 5)
    assert (one.question, one.answer, two.question, two.answer) == (
        "<image>\nWhat?",
        "red",
        "<image><image>Which?",
        "left",
    )
    assert one.turns[0]["value"] == "Be brief." and len(two.turns) == 1
    model, processor = prismatic.build("miniature", "miniature", "linear")
    said = generate_answers(model, processor, source, [one, two], accelerator=Accelerator(cpu=True), max_new_tokens=2)
    assert len(said) == 2


@pytest.mark.parametrize("caption", ["", " ", "\n\t ", "<image>"])
def test_an_empty_caption_is_an_end_alone(caption):
    _, processor = prismatic.build("miniature", "miniature", "linear")
    ids, labels = tokenize_conversation(turns("<image>", caption), processor.tokenizer, 100, "align")
    assert ids == [processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id] and labels[1] == ids[1]


def test_a_caption_is_the_last_answer():
    _, processor = prismatic.build("miniature", "miniature", "linear")
    rows = turns("What?", "a red cross", "Why?"), turns("What?", " a red cross")
    one, other = (tokenize_conversation(turns, processor.tokenizer, 100, "align") for turns in rows)
    assert one == other


def test_what_is_cut_is_counted(tmp_path):
    source = open_rows(tmp_path, row(("What is it? " * 20, "red"), ["a"]), row(("It?", "red"), []))
    _, processor = prismatic.build("miniature", "miniature", "linear")
    whole, short = (encode_counting(source[n], processor, 1000, "finetune") for n in (0, 1))
    ids, labels, cut = encode_counting(source[0], processor, 30, "finetune")
    assert cut == len(whole[0]) - processor.num_image_tokens - 30 > 0 and whole[2] == short[2] == 0
    assert ids == whole[0][: len(ids)] and len(labels) == len(ids) == 30 + processor.num_image_tokens
    examples = batching.TrainingExamples(
        source, lambda r: encode_counting(r, processor, 30, "finetune"), processor.image_processor.transform
    )
    for collate in (batching.collate_packed, lambda items: batching.collate_padded(items, 0)):
        batch = collate([examples[0], examples[1], None])
        assert (batch["cut_rows"], batch["cut_tokens"], batch["skipped"]) == (1, cut, 1)
