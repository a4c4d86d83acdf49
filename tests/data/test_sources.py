import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from datasets import config as datasets_config
from golden_cases import ROOT, load_json, requires_golden, requires_samples, samples_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from prismatic.data import llava_index as arrow_index
from prismatic.data.conversation_dataset import BadImageError, ConversationDataset, MissingImageError, RefusedPathError
from prismatic.data.verify import check_rows
from prismatic.text.prompts import to_messages

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "prismatic"


def row(number=0, image=None, turns=TURNS, **extra):
    return {"id": f"r{number}", "conversations": turns, **({"image": image} if image else {}), **extra}


def dataset_of(tmp_path, rows, **options):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return ConversationDataset(tmp_path / "rows.json", tmp_path, **options)


def dataset_of_image(tmp_path, name, **options):
    return dataset_of(tmp_path, [row(image=name)], **options)


@requires_samples
@pytest.mark.parametrize("as_lines", [False, True], ids=["json", "jsonl"])
def test_genuine_rows(tmp_path, as_lines):
    root = samples_dir() / "llava" / "download" / "llava-v1.5-instruct"
    annotations = root / "llava_v1_5_mix665k.json"
    expected = json.loads(annotations.read_text())
    if as_lines:
        annotations = tmp_path / "rows.jsonl"
        annotations.write_text("\n".join(map(json.dumps, expected)) + "\n\n")
    dataset = ConversationDataset(annotations, root)
    assert len(dataset) == len(expected)
    for index, given_row in enumerate(expected):
        assert dataset[index] == {
            "id": str(given_row["id"]),
            "image": given_row.get("image"),
            "conversations": given_row["conversations"],
        }
        assert dataset.is_multimodal[index] == ("image" in given_row)
        if "image" in given_row:
            with Image.open(root / given_row["image"]) as image:
                assert np.array_equal(np.asarray(dataset.load_image(index)), np.asarray(image.convert("RGB")))
    assert {type(given_row["id"]) for given_row in expected} == {int, str}
    with pytest.raises(IndexError):
        dataset[len(expected)]


@requires_golden
def test_lengths_are_the_references(tmp_path):
    dataset = dataset_of(tmp_path, load_json("B_prismatic/B3_tokenisation/examples.json"))
    lengths = [[bool(has), int(words)] for has, words in zip(dataset.is_multimodal, dataset.word_counts, strict=True)]
    expected = load_json("B_prismatic/B3_tokenisation/align_and_lengths.json")["finetune_modality_lengths"]
    assert lengths[: len(expected)] == expected


def test_rows_across_chunks_and_record_batches(tmp_path, monkeypatch):
    # Chunks of 7 bytes cut rows, escapes, "é" and the emoji everywhere.
    monkeypatch.setattr(arrow_index, "CHUNK_BYTES", 7)
    monkeypatch.setattr(arrow_index, "ROWS_PER_RECORD_BATCH", 3)
    rows = [row(n, turns=[{"from": "human", "value": 'é "\\ \n 🐈 ' * n}]) for n in range(8)]
    for name, text in (
        ("array.json", json.dumps(rows)),
        ("pretty.json", json.dumps(rows, indent=2, ensure_ascii=False)),
        ("bom.json", "\ufeff" + json.dumps(rows, ensure_ascii=False)),
        ("lines.jsonl", "\r\n".join(map(json.dumps, rows))),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        dataset = ConversationDataset(tmp_path / name, tmp_path)
        assert [dataset[n]["conversations"] for n in range(len(dataset))] == [r["conversations"] for r in rows]
        assert dataset.word_counts.tolist() == [3 * n for n in range(8)]


def test_reopening_uses_the_index_and_an_edit_is_noticed(tmp_path, cache, monkeypatch):
    path = tmp_path / "rows.json"
    assert dataset_of(tmp_path, [row(0)])[0]["id"] == "r0"
    with monkeypatch.context() as patch:
        patch.setattr(arrow_index, "read_rows", lambda *_: pytest.fail("indexed twice"))
        assert len(ConversationDataset(path, tmp_path)) == 1
    before = path.stat()
    path.write_text(json.dumps([row(1)]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert ConversationDataset(path, tmp_path)[0]["id"] == "r1"
    assert len(list(cache.glob("*.arrow"))) == 2 and not list(cache.glob("*.partial"))


def test_a_failed_indexing_leaves_nothing(tmp_path, cache):
    for _ in range(2):
        with pytest.raises(ValueError, match="row 1 "):
            dataset_of(tmp_path, [row(), {"id": "x"}])
    assert not list(cache.glob("*.arrow")) and not list(cache.glob("*.partial"))


def open_and_count(path, barrier, answers):
    indexed, write = [], arrow_index._write_index
    arrow_index._write_index = lambda *arguments: (indexed.append(1), write(*arguments))
    barrier.wait(60)
    dataset = ConversationDataset(path, path.parent)
    answers.put((len(dataset), dataset[len(dataset) - 1]["id"], len(indexed)))


def test_many_processes_open_at_once(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([row(n) for n in range(20_000)]))
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    ranks = [context.Process(target=open_and_count, args=(tmp_path / "rows.json", barrier, answers)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    found = sorted(answers.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(60)
    assert found == [(20_000, "r19999", 0), (20_000, "r19999", 0), (20_000, "r19999", 1)]


def test_pickled_data_set_is_small_and_equal(tmp_path):
    dataset = dataset_of(tmp_path, [row(n, turns=[{"from": "human", "value": "word " * 1000}]) for n in range(100)])
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000
    assert pickle.loads(pickled)[99] == dataset[99]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="memory maps are listed on Linux only")
def test_reading_keeps_little_of_the_index_mapped(tmp_path):
    # 32 MB of index; a read maps 64 kB of it.
    dataset = dataset_of(tmp_path, [row(n, turns=[{"from": "gpt", "value": "word " * 800}]) for n in range(8000)])
    for index in range(8000):
        dataset[index]
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    mapped = [
        int(next(line for line in lines if line.startswith("Rss:")).split()[1])
        for line in lines
        if str(tmp_path) in line
    ]
    assert len(mapped) == 1 and mapped[0] < 8_000


def test_torch_is_not_needed():
    code = "import sys, prismatic.data.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("  [ ]\n", "holds no rows"),
        ("not json", "row 0 is not valid JSON"),
        ('{"data": []}', "row 0 has id None"),
        ("[1]", "row 0 is 1; expected an object"),
        ("[%s, ]", "row 1 is not valid JSON"),
        ("[%s %s]", "'{' after row 0; expected ',' or ']'"),
        ("[%s", "ends after row 0 without ']'"),
        ("[%s] %s", "'{' after the closing ']'"),
        ('[%s, {"id": "x", ', "row 1 is not valid JSON"),
        ('%s\n{"id": "x", \n%s', "row 1 is not valid JSON"),
        ("[" * 100_000, "row 0 is not valid JSON"),
        ("[" + "7" * 5000 + "]", "row 0 is not valid JSON"),
        ('[{"id": "x"}]', "row 0 has conversations None"),
        ('[{"id": 1.5, "conversations": [1]}]', "row 0 has id 1.5"),
        ('[{"id": 1, "conversations": []}]', "row 0 has conversations []"),
        ('[{"id": 1, "conversations": [{"from": "gpt"}]}]', "row 0 has the turn {'from': 'gpt'}"),
        ('[{"id": 1, "conversations": ["hello"]}]', "row 0 has the turn 'hello'"),
        ('[{"id": 1, "image": ["a", 3], "conversations": [1]}]', "row 0 has image ['a', 3]"),
        ('[{"id": 1, "image": "", "conversations": [1]}]', "row 0 has image ''"),
        ('[{"id": "\\ud800", "conversations": [{"from": "gpt", "value": ""}]}]', "row 0 holds half a surrogate"),
    ],
)
def test_malformed_annotations(tmp_path, text, message):
    (tmp_path / "rows.json").write_text(text.replace("%s", json.dumps(row())))
    with pytest.raises(ValueError) as error:
        ConversationDataset(tmp_path / "rows.json", tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_broken_row_does_not_read_on_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_index, "CHUNK_BYTES", 100)
    monkeypatch.setattr(arrow_index, "LONGEST_ROW", 1000)
    (tmp_path / "rows.json").write_text("[" + json.dumps(row()) + ', {"id" 1}' + " " * 10_000)
    read = []
    with pytest.raises(ValueError, match="row 1 is not valid JSON"):
        list(arrow_index.read_rows(tmp_path / "rows.json", read.append))
    assert sum(read) < 1500


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "rows.json").write_bytes(b'[{"id": "caf\xe9"}]')
    with pytest.raises(ValueError, match="not UTF-8 text"):
        ConversationDataset(tmp_path / "rows.json", tmp_path)


def test_absent_files_name_near_ones(tmp_path):
    (tmp_path / "llava_v1_5_mix665k.json").write_text("[]")
    with pytest.raises(ValueError, match="did you mean llava_v1_5_mix665k.json"):
        ConversationDataset(tmp_path / "llava_v1.5_mix665k.json", tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([row(image="a.png")]))
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        ConversationDataset(tmp_path / "rows.json", tmp_path / "nowhere")
    (tmp_path / "text.json").write_text(json.dumps([row()]))
    assert len(ConversationDataset(tmp_path / "text.json", tmp_path / "nowhere")) == 1


NUMBERS = count()
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NEARLY_TURNS = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]) | ANYTHING, "value": ANYTHING})
)
NEARLY_ROWS = st.fixed_dictionaries(
    {}, optional={"id": ANYTHING, "image": ANYTHING, "conversations": NEARLY_TURNS | ANYTHING, "model": ANYTHING}
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(NEARLY_ROWS, min_size=1, max_size=3) | ANYTHING, cut=st.integers(0, 40))
def test_any_rows_give_a_data_set_or_a_value_error(tmp_path, rows, cut):
    path = tmp_path / f"rows{next(NUMBERS)}.json"
    text = json.dumps(rows)
    path.write_text(text[: len(text) - cut] if cut < 20 else text)
    try:
        dataset = ConversationDataset(path, tmp_path)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    for index in range(len(dataset)):
        assert dataset[index]["conversations"]
        if dataset.is_multimodal[index]:
            with pytest.raises(ValueError):
                dataset.load_image(index)
        try:
            to_messages(dataset[index]["conversations"])
        except ValueError as error:
            assert "\n" not in str(error)
    assert check_rows(dataset, 0).counts["rows"] == len(dataset)


@pytest.mark.parametrize("place", ["%s", '{"id": %s}', '{"id": 1, "image": %s}', '{"id": 1, "conversations": [%s]}'])
def test_nesting_about_as_deep_as_python_goes(tmp_path, place):
    for depth in [*range(880, 1010), 10_000]:
        path = tmp_path / f"{depth}.json"
        path.write_text("[" + place % ("[" * depth + "]" * depth) + "]")
        with pytest.raises(ValueError, match="row 0"):
            ConversationDataset(path, tmp_path)


def test_every_mode_becomes_rgb(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.stack([ramp, ramp.T, ramp[::-1]], axis=-1)
    grey = np.stack([ramp] * 3, axis=-1)
    rgb = Image.fromarray(colours)
    images = {
        "grey.png": (Image.fromarray(ramp), grey, 0),
        "grey_alpha.png": (Image.fromarray(ramp).convert("LA"), grey, 0),
        "deep.png": (Image.fromarray(ramp.astype(np.uint16) * 257), grey, 0),
        "deep.tiff": (Image.fromarray(ramp.astype(np.int32) * 257), grey, 0),
        "alpha.png": (Image.merge("RGBA", [*rgb.split(), Image.fromarray(ramp)]), colours, 0),
        "palette.png": (rgb.quantize(256), colours, 12),
        "palette.gif": (Image.fromarray(ramp).convert("P"), grey, 0),
        "bits.png": (Image.fromarray(ramp > 127), (grey > 127) * 255, 0),
        "cmyk.tiff": (rgb.convert("CMYK"), colours, 1),
        "cmyk.jpg": (rgb.convert("CMYK"), colours, 40),
        "float.tiff": (Image.fromarray(ramp.astype(np.float32)), grey, 0),
        "100%25 größe ✓.PNG": (rgb, colours, 0),
    }
    for name, (image, _, _) in images.items():
        image.save(tmp_path / name)
    dataset = dataset_of(tmp_path, [row(n, image=name) for n, name in enumerate(images)])
    for index, (name, (_, expected, tolerance)) in enumerate(images.items()):
        image = dataset.load_image(index)
        assert image.mode == "RGB", name
        assert np.abs(np.asarray(image, dtype=int) - expected).max() <= tolerance, name


def test_exif_rotation_is_a_switch(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(tmp_path / "a.png", exif=exif)
    stored = np.asarray(dataset_of_image(tmp_path, "a.png").load_image(0))
    turned = np.asarray(dataset_of_image(tmp_path, "a.png", exif_rotate=True).load_image(0))
    assert stored.shape == (10, 20, 3)
    assert np.array_equal(turned, np.rot90(stored, -1))


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "a/..", "/etc/hostname", "out/secret.png", "a\0b"]
)
def test_paths_out_of_the_root_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(RefusedPathError, match=r"row 0 \(id 'r0'\)") as error:
        dataset_of_image(root, name).load_image(0)
    assert repr(name) in str(error.value)


def test_links_that_stay_inside_are_followed(tmp_path):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(root / "images" / "a.png")
    (root / "alias").symlink_to(root / "images")
    (tmp_path / "link").symlink_to(root)
    (root / "rows.json").write_text(json.dumps([row(image="alias/a.png")]))
    assert ConversationDataset(root / "rows.json", tmp_path / "link").load_image(0).size == (3, 2)


def test_bad_images_name_file_and_row(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("L", (40, 40)).save(tmp_path / "140031996X.png")
    names = ["cut.jpg", "empty.png", "page.jpg", "folder.jpg", "pipe.jpg", "n" * 300, "140031996X.jpg", "whole.jpg"]
    dataset = dataset_of(tmp_path, [row(n, image=name) for n, name in enumerate(names)])
    for index, name in enumerate(names[:-1]):
        with pytest.raises(BadImageError, match=rf"rows.json: row {index} \(id 'r{index}'\), image '{name}'"):
            dataset.load_image(index)
    with pytest.raises(MissingImageError, match="140031996X.png lies there"):
        dataset.load_image(names.index("140031996X.jpg"))
    assert dataset.load_image(7).size == (64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 63)  # a warning of Pillow's; beyond twice that, an error
    with pytest.raises(BadImageError, match=r"whole\.jpg.*DecompressionBombError"):
        dataset.load_image(7)


def test_loading_a_text_only_row(tmp_path):
    with pytest.raises(ValueError, match="text-only"):
        dataset_of(tmp_path, [row()]).load_image(0)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", Path(tmp_path / "file"))
    with pytest.raises(ValueError, match="point HF_DATASETS_CACHE"):
        dataset_of(tmp_path, [row()])
