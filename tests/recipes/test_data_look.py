"""The page of `prismatic data look`: what it marks is what training supervises, and no text of a data set is markup."""

import base64
import html.parser
import io
import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

import prismatic
from prismatic.data.batching import TrainingExamples
from prismatic.data.conversation_dataset import ConversationDataset
from prismatic.models.load import BUNDLED
from prismatic.models.processing import encode_counting
from recipes.training_data.look import look, processor_of
from recipes.training_data.measure import histogram, measured
from recipes.training_data.shown_rows import picture, segments

HOSTILE = '"></mark></div><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> &lt;b&gt; {{ 7*7 }}'


def row(identity, question, *answers, image=None):
    turns = []
    for number, answer in enumerate(answers):
        turns += [{"from": "human", "value": question if not number else "And?"}, {"from": "gpt", "value": answer}]
    return {"id": identity, "conversations": turns} | ({"image": image} if image else {})


ROWS = [
    row("one", "<image>\nWhat is to the left?", "a red circle", "It is  large.", image="0.png"),
    row("two images", "<image>\n<image>\nCompare.", "They differ.", image=["0.png", "1.png"]),
    row("text", "Tell me a story.", "word " * 90),
    row(f"<i>{HOSTILE}</i>", f"<image>\n{HOSTILE}\x00\x1b[31m \u202edesrever", HOSTILE, image="0.png"),
    row("other scripts", "ما هذا؟", "Das ist ein Käfer — 甲虫 🪲"),
    row("missing", "<image>\nWhat?", "Nothing.", image="<b>gone</b>.png"),
    row("refused", "<image>\nA question about no image", "Nothing."),
    row("empty", "<image>\nWhat?", "", image="1.png"),
]


class Page(html.parser.HTMLParser):
    """Texts by the class of the innermost element, for each section of class `row`; and all elements."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.elements, self.open, self.said = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if attributes.get("class") == "row":
            self.rows.append({})
        if tag not in ("meta", "img", "line", "rect"):
            self.open.append((tag, attributes.get("class")))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        assert tag in ("line", "rect") or self.open.pop()[0] == tag, "elements are closed in order"

    def handle_data(self, data):
        self.said.append(data)
        if self.rows and self.open:
            kinds = self.rows[-1]
            kinds[self.open[-1][1]] = kinds.get(self.open[-1][1], "") + data


@pytest.fixture(scope="module")
def processor():
    return processor_of("miniature")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    across = np.linspace(0, 255, 90)[None, :, None] * np.array([1, 0.5, 0.2]) + np.zeros((60, 90, 3))
    for number in range(2):
        Image.fromarray(across.astype(np.uint8)).rotate(90 * number).save(folder / f"{number}.png")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    return folder


def written(folder, out, max_length=60, n=24, seed=0, model="miniature"):
    look(str(folder / "rows.json"), None, n, model, max_length, out, seed)
    return out.read_text()


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    return written(folder, tmp_path_factory.mktemp("page") / "deep/look.html", max_length=2048)


def encode(row, processor, max_length):
    return encode_counting(row, processor, max_length, "finetune")


def trained(source, processor, max_length, number):
    """Ids and labels of a row as the loader of a finetune makes them."""
    as_training = partial(encode, processor=processor, max_length=max_length)
    example = TrainingExamples(source, as_training, processor.image_processor.transform, "error")[number]
    return list(example["input_ids"]), list(example["labels"]), example


@pytest.mark.parametrize("max_length", [15, 60, 2048])
def test_what_is_marked_is_what_training_supervises(folder, processor, tmp_path, max_length):
    source = ConversationDataset(folder / "rows.json", folder)
    shown = Page(written(folder, tmp_path / "look.html", max_length)).rows
    assert len(shown) == len(ROWS)
    for number in (0, 1, 2, 4, 7):
        _, labels, _ = trained(source, processor, max_length, number)
        supervised = processor.tokenizer.decode([label for label in labels if label >= 0])
        assert shown[number].get("said", "").split() == supervised.split(), ROWS[number]["id"]
    if max_length == 2048:  # and it is what the answers say
        assert shown[0]["said"] == " a red circle</s> It is  large.</s>"
        assert shown[4]["said"].strip() == "Das ist ein Käfer — 甲虫 🪲</s>"
        assert all("cut" not in found for found in shown)


def test_nothing_is_lost_between_seen_and_cut_off(folder, processor):
    source = ConversationDataset(folder / "rows.json", folder)
    for number in (0, 1, 2, 4):
        whole = segments(source[number], processor, sys.maxsize)
        for max_length in (1, 7, 20, 60):
            found = segments(source[number], processor, max_length)
            assert sum(s.tokens for s in found) == sum(s.tokens for s in whole)
            text = sum(s.tokens for s in found if s.kind in ("context", "said"))
            assert text == min(max_length, sum(s.tokens for s in whole if s.kind != "image"))
            if number != 4:  # its letters are of several tokens, and a cut goes through one
                assert "".join(s.text for s in found) == "".join(s.text for s in whole)
        images = [s.tokens for s in whole if s.kind == "image"]
        assert images == ([source.image_counts[number] * 37] if source.image_counts[number] else [])


def test_texts_of_a_data_set_are_no_markup(page):
    found = Page(page)
    assert not {"script", "i", "iframe", "link"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert all(attributes[name].startswith("data:image/") for name in ("src", "href") if name in attributes)
    assert "default-src 'none'" in page
    assert f"<i>{HOSTILE}</i>" in found.rows[3][None] and HOSTILE in found.rows[3]["said"]
    everything = "".join(found.said)
    assert "␀" in everything and "␛[31m" in everything and "[U+202E]desrever" in everything
    assert not set(everything) & {"\x00", "\x1b", "\u202e"}


def test_what_is_wrong_with_a_row_is_said_beside_it(page):
    rows = Page(page).rows
    assert "missing, no file" in rows[5]["problem"] and "<b>gone</b>.png" in rows[5]["problem"]
    assert rows[5]["said"] == " Nothing.</s>"
    assert rows[6]["problem"].startswith('cannot be trained on: 1 "<image>" for 0 images')
    assert [number for number, row in enumerate(rows) if "problem" in row] == [5, 6]
    assert "1 of these cannot be trained on" in page


def test_pictures_are_the_pixels_that_the_model_gets(folder, processor, page):
    image = Image.open(folder / "0.png")
    pixels = processor.image_processor([image])["pixel_values"][0].numpy()
    expected = (pixels * 0.5 + 0.5).transpose(1, 2, 0) * 255  # the mean and deviation of the bundled model's backbone
    assert np.abs(np.asarray(picture(image, processor), float) - expected).max() <= 0.51
    shown = [attributes["src"] for tag, attributes in Page(page).elements if tag == "img"]
    assert len(shown) == 1 + 2 + 1 + 1, "of five rows with images, one of which is not there"
    shown = Image.open(io.BytesIO(base64.b64decode(shown[0].partition(",")[2])))
    assert np.abs(np.asarray(shown, float) - expected).max() <= 0.51, "small ones without loss"


def test_a_fused_backbone_shows_its_first_part(folder):
    from prismatic.models.image_processing import PrismaticImageProcessor
    from vision_backbones import get_spec

    class Fused:
        image_processor = PrismaticImageProcessor(get_spec("dinosiglip-vit-so-384px").to_dict())

    red = picture(Image.new("RGB", (50, 50), (200, 30, 60)), Fused)
    assert red.size == (384, 384) and np.abs(np.array(red.getpixel((9, 9))) - (200, 30, 60)).max() <= 1


def test_numbers_are_those_of_the_rows(folder, processor):
    source = ConversationDataset(folder / "rows.json", folder)
    found = measured(source, range(len(source)), processor, 60)
    assert found["modalities"] == [("text only", "3", "37.5%"), ("one image", "4", "50.0%"), ("several", "1", "12.5%")]
    lengths, supervised, seen, cut = [], 0, 0, 0
    for number in (0, 1, 2, 3, 4, 5, 7):
        ids, labels, _ = trained(source, processor, 60, number) if number != 5 else encode(source[5], processor, 60)
        whole = encode(source[number], processor, 10**6)[0]
        lengths.append(len(whole) - 37 * source.image_counts[number])
        supervised, seen, cut = supervised + sum(x >= 0 for x in labels), seen + len(ids), cut + len(whole) - len(ids)
    assert (found["supervised"], found["seen"], found["cut_tokens"]) == (supervised, seen, cut)
    assert found["refused"] == 1 and found["cut_rows"] == sum(length > 60 for length in lengths) > 0
    spread = dict(found["lengths"])
    assert (spread["shortest"], spread["longest"]) == (str(min(lengths)), str(max(lengths)))
    assert sum(rows for _, _, rows in found["histogram"]["bars"]) == len(lengths) == 7
    answers = [
        turn["value"].strip() for number, r in enumerate(ROWS) if number != 6 for turn in r["conversations"][1::2]
    ]
    assert found["num_answers"] == len(answers) == 8 and ("(empty)", "1", "12.5%") in found["answers"]
    assert found["mean_words"] == pytest.approx(sum(len(answer.split()) for answer in answers) / 8)


def test_histogram_counts_every_length_once():
    lengths = [0, 1, 9, 10, 19, 95, 5000] + [50] * 993
    found = histogram(lengths, 50)
    assert all(first + last + 1 - first == last + 1 for first, last, _ in found["bars"])
    for first, last, rows in found["bars"][:-1]:
        assert rows == sum(first <= length <= last for length in lengths)
    assert sum(rows for _, _, rows in found["bars"]) == 1000 and found["longer"] == 2
    step = found["bars"][0][1] + 1
    assert found["limit"] == 50 / step and histogram(lengths, 10**6)["limit"] is None
    assert histogram([], 10)["highest"] == 0


def test_a_page_of_long_rows_and_large_noise_stays_small(tmp_path, monkeypatch):
    """A part of 24 rows with the images that take most, and endless texts of letters that need escaping."""
    processor = prismatic.load("miniature")[1]
    processor.image_processor.image_size = 384
    monkeypatch.setattr("recipes.training_data.look.processor_of", lambda model: processor)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    rows = [row(str(n), "&" * 8_000, '"' * 8_000, image=["noise.png"] * (6 - n)) for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    text = written(tmp_path, tmp_path / "look.html", max_length=15_000)
    assert text.count("<img") == 12 and "and 2 more" in text and "more characters" in text
    assert len(text.encode()) <= 5_000_000 * 3 / 24


def test_rows_are_drawn_by_the_seed(tmp_path, capsys):
    pages = []
    for seed in (0, 0, 1):
        look("miniature:60", None, 4, "miniature", 2048, tmp_path / "look.html", seed)
        pages.append((tmp_path / "look.html").read_text())
    assert pages[0] == pages[1] != pages[2] and len(Page(pages[0]).rows) == 4
    assert capsys.readouterr().out.count("look.html: 4 of 60 rows, statistics of 60") == 3


def test_the_processor_of_a_run_is_read_without_its_weights(tmp_path):
    for steps in (2, 10):
        model = tmp_path / f"run/checkpoints/epoch-{steps:02d}"
        shutil.copytree(BUNDLED["miniature"], model, ignore=shutil.ignore_patterns("*.safetensors"))
        (model / "trained.json").write_text(json.dumps({"step": steps}))
    assert processor_of(str(tmp_path / "run")).num_image_tokens == 37
    with pytest.raises(ValueError, match="no model called 'nope'"):
        processor_of("nope")
