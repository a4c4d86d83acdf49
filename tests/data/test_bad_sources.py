"""What is wrong with data is said in one line that names it, before anything is trained."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from picture_files import picture, write_tar
from source_files import CONTAINERS, LAYOUTS, conversation, raw

from prismatic.data.image_stores import BadImageError
from prismatic.data.mixture import open_sources
from prismatic.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


def refused(*locations, **options):
    with pytest.raises(ValueError) as error:
        open_sources(list(map(str, locations)), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


PAIRS = [[{"user": "a", "assistant": "b"}]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"question": ["a"], "answer": ["b"]},
            ["columns answer, question", "llava (conversations)", "caption or text"],
        ),
        ({"texts": [[{"user": "a", "assistant": None}]]}, ["row 0", "column texts", "'user' and 'assistant'"]),
        ({"texts": PAIRS + [[{"user": "a", "assistant": None}]]}, ["row 1", "column texts"]),
        ({"texts": [["a", "b"]]}, ["row 0", "column texts", "['a', 'b']"]),
        ({"texts": [[]]}, ["row 0", "column texts"]),
        ({"texts": [*PAIRS, None]}, ["row 1 has nothing in column texts"]),
        ({"messages": [[{"role": "user", "content": 3}]]}, ["row 0", "column messages"]),
        ({"messages": [[{"role": "user"}]]}, ["row 0", "column messages"]),
        ({"messages": [[{"role": "user", "content": [{"type": "video", "text": None}]}]]}, ["row 0", "messages"]),
        ({"conversations": [[{"from": "human", "value": None}]]}, ["row 0", "column conversations"]),
        ({"caption": [7], "image": [b"x"]}, ["row 0", "column caption", "expected a string"]),
        ({"texts": PAIRS, "images": [[3]]}, ["column images of type list<", "datasets.Image"]),
        ({"texts": PAIRS, "image": [1.5]}, ["column image of type double"]),
        ({"texts": PAIRS, "images": [["a.png"]], "image": ["a.png"]}, ["columns image and images"]),
        ({"texts": PAIRS, "images": [[None]]}, ["row 0", "images[0]", "None"]),
        ({"texts": PAIRS, "images": [["https://example.org/a.png"]]}, ["row 0", "images[0]", "path of a file"]),
        ({"texts": PAIRS, "images": [["../a.png"]]}, []),
        ({"id": [1.5], "texts": PAIRS}, ["row 0 has id 1.5"]),
    ],
)
def test_rows_that_are_no_conversations(columns, words, tmp_path):
    path = raw(tmp_path, columns)
    if not words:
        with pytest.raises(ValueError, match="refused; expected a path relative to the image root"):
            open_source(path).check_images()
        return
    message = refused(path)
    assert all(word in message for word in [path, *words]), message


def test_unknown_and_unfitting_layouts(tmp_path):
    path = raw(tmp_path, {"texts": PAIRS})
    assert "did you mean cauldron" in refused(path, layout="cauldrn")
    message = refused(path, layout="messages")
    assert "has the columns texts; expected those of layout messages" in message and "cauldron (texts)" in message


@pytest.mark.parametrize("container", ["parquet", "disk", "snappy"])
def test_an_image_that_is_none(container, tmp_path):
    data = LAYOUTS["onevision"]()
    rows = data.data.table.to_pylist()
    rows[2]["image"]["bytes"] = b"<html>404</html>"
    source = open_source(CONTAINERS[container](type(data).from_list(rows, data.features), tmp_path / "data"))
    source.check_rows()
    with pytest.raises(BadImageError, match=r"row 2 \(id 'r2'\), image 'image\[0\]': unreadable \(UnidentifiedImage"):
        source.load_image(2)
    assert source.load_image(0).size == (40, 48)


def test_files_that_are_not_there_or_not_whole(tmp_path):
    folder = CONTAINERS["parquet"](LAYOUTS["cauldron"](), tmp_path / "data")
    whole = tmp_path / "data" / "train-00001-of-00002.parquet"
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert f"{whole} is cut off, damaged or no parquet" in refused(folder)
    whole.write_bytes(content)
    assert "1 of the 3 shards" in refused(f"{folder}/train-{{00000..00002}}-of-00002.parquet")
    assert "did you mean data" in refused(tmp_path / "dat")
    assert "no annotation file" in refused(tmp_path / "rows.json")
    message = refused(tmp_path)
    assert "holds no conversations" in message and message.endswith(f"name {folder}, which holds some")
    pq.write_table(pa.table({"messages": [[{"role": "user", "content": "a"}]]}), tmp_path / "data" / "train-9.parquet")
    assert "train-9.parquet lacks" in refused(folder)
    whole.rename(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert "holds the splits test, train" in refused(folder)


def test_folders_of_datasets(tmp_path):
    location = CONTAINERS["splits"](LAYOUTS["cauldron"](), tmp_path / "data")
    folder = location.removesuffix(":train")
    assert f"{folder}:train" in refused(folder)
    assert f"did you mean {folder}:train" in refused(f"{folder}:trian")
    (tmp_path / "data" / "train" / "state.json").write_text("{")
    assert "cannot be read" in refused(location)


def test_the_hub_without_network(tmp_path):
    message = refused("hf:someone/unheard-of:train")
    assert "hf:someone/unheard-of:train cannot be loaded" in message and "HF_HUB_OFFLINE" in message
    assert "load_dataset('someone/unheard-of', split='train') once where there is network" in message
    assert "expected hf:NAME:SPLIT" in refused("hf:someone/unheard-of")
    assert "expected a number of questions" in refused("miniature:many")


def test_tars_that_are_no_rows(tmp_path):
    def message(*members):
        return refused(write_tar(tmp_path / "a.tar", members))

    said = json.dumps({"conversations": conversation(0)}).encode()
    assert "neither key.json nor key.txt" in message(("a.png", picture(0)))
    assert "holds b.png, but no b.json" in message(("a.json", said), ("b.png", picture(0)))
    assert "holds a.json twice" in message(("a.json", said), ("a.json", said))
    assert "a.json is no UTF-8 json" in message(("a.json", b"{"))
    assert "a.txt is no UTF-8 txt" in message(("a.txt", b"caf\xe9"))
    assert "a.json holds [1]" in message(("a.json", b"[1]"))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    assert "truncated" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize("container", ["parquet", "snappy", "tar"])
def test_data_that_changes_while_it_is_open(container, tmp_path):
    if container == "tar":
        said = json.dumps({"conversations": conversation(0)}).encode()
        path = write_tar(tmp_path / "a.tar", [("a.json", said), ("a.png", picture(0))])
    else:
        CONTAINERS[container](LAYOUTS["cauldron"](), tmp_path / "data")
        path = tmp_path / "data" / "train-00000-of-00002.parquet"
    source = open_source(str(path))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match=f"{path.name} has changed since the data was opened"):
        source.load_image(0)
    assert open_source(str(path)).load_image(0).size == (40, 48)


def test_a_shard_that_is_listed_twice(tmp_path):
    folder = CONTAINERS["parquet"](LAYOUTS["cauldron"](), tmp_path / "data")
    shard = f"{folder}/train-00001-of-00002.parquet"
    assert f"train-00001-of-00002.parquet is listed twice, by {folder} and {shard}" in refused(folder, shard)
    (tmp_path / "alias").symlink_to(tmp_path / "data")
    assert "is listed twice" in refused(shard, f"{tmp_path}/alias/train-00001-of-00002.parquet")
