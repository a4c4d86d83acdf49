"""Rows and pixels of every layout in every container are those that were put in."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from golden_cases import requires_samples, samples_dir
from picture_files import picture
from PIL import Image
from source_files import CONTAINERS, COUNTS, LAYOUTS, conversation, members_of, pictures, raw, write_shards

from prismatic.data.conversation_dataset import ConversationDataset
from prismatic.data.sources import open_source

MARK = "<image>"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "prismatic"


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def check(source, images, ids=None, conversations=conversation):
    assert len(source) == len(images)
    assert source.image_counts.tolist() == [len(row) for row in images]
    order = np.random.default_rng(0).permutation(len(images)).tolist()  # as training asks for them
    for row in order:
        found = source[row]
        assert found["id"] == (ids[row] if ids else str(row))
        assert found["conversations"] == conversations(row)
        assert source.word_counts[row] == sum(len(turn["value"].split()) for turn in conversations(row))
        loaded = source.load_images(row)
        assert len(loaded) == len(images[row])
        for image, expected in zip(loaded, images[row], strict=True):
            assert np.array_equal(np.asarray(image), pixels(expected))
    source.check_rows()
    source.check_images()


def in_words(row):
    """The conversation of a row whose images are said as parts of its first message."""
    turns = [
        {"from": {"human": "user", "gpt": "assistant"}[turn["from"]], "value": turn["value"]}
        for turn in conversation(row)
    ]
    turns[0]["value"] = MARK * COUNTS[row] + turns[0]["value"]
    return turns


@requires_samples
def test_genuine_rows_of_llava(tmp_path):
    """As a source, a file of LLaVA's gives what it gives as annotations, and so the same order of rows."""
    root = samples_dir() / "llava" / "download" / "llava-v1.5-instruct"
    known = ConversationDataset(root / "llava_v1_5_mix665k.json", root)
    source = open_source(str(root / "llava_v1_5_mix665k.json"))
    assert [source[row] for row in range(len(source))] == [known[row] for row in range(len(known))]
    assert source.image_counts.tolist() == known.image_counts.tolist()
    assert source.word_counts.tolist() == known.word_counts.tolist()
    image = int(known.image_counts.argmax())
    assert np.array_equal(np.asarray(source.load_image(image)), np.asarray(known.load_image(image)))


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(container, tmp_path):
    source = open_source(CONTAINERS[container](LAYOUTS["cauldron"](), tmp_path / "data"))
    check(source, pictures())
    check(pickle.loads(pickle.dumps(source)), pictures())


@pytest.mark.parametrize("container", ["parquet", "disk"])
@pytest.mark.parametrize("layout", ["llava", "onevision", "messages"])
def test_every_layout(layout, container, tmp_path):
    images = pictures(counts=(1, 0, 1)) if layout == "onevision" else pictures()
    ids = None if layout == "messages" else [f"r{row}" for row in range(len(images))]
    source = open_source(CONTAINERS[container](LAYOUTS[layout](), tmp_path / "data"))
    check(source, images, ids, in_words if layout == "messages" else conversation)


def test_one_file_a_pattern_and_a_layout_by_name(tmp_path):
    folder = CONTAINERS["parquet"](LAYOUTS["cauldron"](), tmp_path / "data")
    check(open_source(f"{folder}/train-*.parquet", "cauldron"), pictures())
    check(open_source(f"{folder}/train-{{00000..00001}}-of-00002.parquet"), pictures())
    check(open_source(f"{folder}/train-00000-of-00002.parquet"), pictures()[:4])


def test_tar_shards(tmp_path):
    folder = write_shards(tmp_path / "data", lambda row: members_of(row, pictures()[row]))
    for location in (folder, f"{folder}/*.tar", f"{folder}/train-{{0..1}}.tar"):
        source = open_source(location)
        check(source, pictures(), [f"r{row}" for row in range(8)])
    check(pickle.loads(pickle.dumps(source)), pictures(), [f"r{row}" for row in range(8)])


def test_many_images_of_a_key_are_in_order_of_their_numbers(tmp_path):
    images = [picture(number) for number in range(12)]
    folder = write_shards(tmp_path / "data", lambda row: members_of(row, images)[::-1])
    check(open_source(folder), [images] * 8, [f"r{row}" for row in range(8)])


def captions(row):
    return [{"from": "human", "value": MARK}, {"from": "gpt", "value": f"Caption {row}."}]


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_captions_in_tars(kind, tmp_path):
    def members(row):
        text = f"Caption {row}."
        data = text if kind == "txt" else json.dumps({"caption": text, "url": "https://example.org"})
        return [(f"r{row}.png", picture(row)), (f"r{row}.{kind}", data.encode())]

    source = open_source(write_shards(tmp_path / "data", members))
    check(source, [[picture(row)] for row in range(8)], [f"r{row}" for row in range(8)], captions)


def test_what_webdataset_writes(tmp_path):
    writer = pytest.importorskip("webdataset").TarWriter(str(tmp_path / "a.tar"))
    with writer:
        for row in range(3):
            writer.write({"__key__": f"k{row}", "png": picture(row), "json": {"conversations": conversation(row)}})
    check(open_source(str(tmp_path / "a.tar")), [[picture(row)] for row in range(3)], ["k0", "k1", "k2"])


@pytest.mark.parametrize("as_list", [False, True])
def test_raw_bytes(as_list, tmp_path):
    images = pictures() if as_list else pictures(counts=(1, 0))
    values = {
        "images" if as_list else "image": images if as_list else [row[0] if row else None for row in images],
        "conversations": [conversation(row) for row in range(8)],
    }
    check(open_source(raw(tmp_path / "data", values)), images)
    check(open_source(raw(tmp_path / "data", values), image_root=tmp_path), images)


@pytest.mark.parametrize("kind", ["parquet", "structs", "json", "jsonl"])
def test_images_as_paths(kind, tmp_path):
    rows = [
        {"id": f"r{row}", "images": [f"sub/{row}-{n}.png" for n in range(len(images))],
         "conversations": conversation(row)}
        for row, images in enumerate(pictures())
    ]  # fmt: skip
    (tmp_path / "sub").mkdir()
    for row, images in enumerate(pictures()):
        for number, data in enumerate(images):
            (tmp_path / "sub" / f"{row}-{number}.png").write_bytes(data)
    if kind in ("parquet", "structs"):
        values = {name: [row[name] for row in rows] for name in rows[0]}
        if kind == "structs":  # datasets.Image of paths
            type_ = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            values["images"] = pa.array([[{"path": path} for path in row["images"]] for row in rows], type_)
        location = raw(tmp_path / "data", values)
    else:
        location = str(tmp_path / f"rows.{kind}")
        rows = [{"image" if name == "images" else name: value for name, value in row.items()} for row in rows]
        text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
        Path(location).write_text(text)
    source = open_source(location, image_root=tmp_path)
    check(source, pictures(), [row["id"] for row in rows])
    assert source[2]["image"] == ["sub/2-0.png", "sub/2-1.png"]
    (tmp_path / "sub" / "2-1.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 10 images of .* are missing, such as .*2-1\.png"):
        open_source(location, image_root=tmp_path).check_images()


def test_a_llava_json_names_its_images_under_image(tmp_path):
    """As LLaVA does; any other key is refused by all that read it, rather than passed over."""
    (tmp_path / "rows.json").write_text(
        json.dumps([{"id": "a", "images": ["a.png"], "conversations": conversation(0)}])
    )
    for read in (open_source, lambda path: ConversationDataset(path, tmp_path)):
        with pytest.raises(ValueError, match="row 0 has images .* expected the paths under 'image'"):
            read(str(tmp_path / "rows.json"))


def test_some_images_embedded_and_some_as_paths(tmp_path):
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (tmp_path / "a.png").write_bytes(picture(7))
    values = [{"bytes": picture(1), "path": "x.png"}, {"bytes": None, "path": "a.png"}, None]
    for options in ({"compression": "none", "use_dictionary": False}, {}):
        table = pa.table({"image": pa.array(values, type_), "conversations": [conversation(n) for n in range(3)]})
        pq.write_table(table, tmp_path / "rows.parquet", **options)
        check(open_source(str(tmp_path / "rows.parquet")), [[picture(1)], [picture(7)], []])


def test_messages_that_name_their_images(tmp_path):
    """Text and parts of OpenAI's form, in json; images precede the text, and the marks say where they were."""
    (tmp_path / "a.png").write_bytes(picture(3))
    (tmp_path / "b.png").write_bytes(picture(4))
    parts = [
        {"type": "text", "text": "Compare "},
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": " and "},
        {"type": "image", "image": "b.png"},
    ]
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts},
                      {"role": "assistant", "content": "Alike."}]},
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path / "rows.jsonl"))
    source.check_rows()
    assert source[0]["conversations"] == [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": f"Compare {MARK} and {MARK}"},
        {"from": "assistant", "value": "Alike."},
    ]
    assert [image.getpixel((0, 0))[0] for image in source.load_images(0)] == [3, 4]
    assert source.image_counts.tolist() == [2, 0]


def test_the_older_form_of_lists_of_dicts(tmp_path):
    """`datasets` had them as a dict of lists."""
    values = {"texts": [{"user": ["a", "b"], "assistant": ["c", "d"]}]}
    source = open_source(raw(tmp_path / "data", values))
    assert [turn["value"] for turn in source[0]["conversations"]] == ["a", "c", "b", "d"]


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(file, "PNG", exif=exif)
    location = raw(tmp_path / "data", {"image": [file.getvalue()], "conversations": [conversation(0)]})
    stored = np.asarray(open_source(location).load_image(0))
    assert np.array_equal(np.asarray(open_source(location, exif_rotate=True).load_image(0)), np.rot90(stored, -1))


@pytest.mark.parametrize("container", ["parquet", "snappy"])
def test_indexing_reads_no_pixels(container, tmp_path, cache):
    """The index is the same where not one byte is left of the pages that hold images."""
    location = CONTAINERS[container](LAYOUTS["cauldron"](), tmp_path / "data")
    source = open_source(location)
    for index in cache.glob("*.arrow"):
        index.unlink()
    for shard in (tmp_path / "data").glob("*.parquet"):
        footer, content = pq.read_metadata(shard), bytearray(shard.read_bytes())
        for group in range(footer.num_row_groups):
            chunk = footer.row_group(group).column(0)
            assert chunk.path_in_schema == "images.list.element.bytes"
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
        shard.write_bytes(content)
    again = open_source(location)
    assert again.digest == source.digest and again.image_counts.tolist() == source.image_counts.tolist()
    with pytest.raises(ValueError, match="damaged"):
        again.load_image(0)
