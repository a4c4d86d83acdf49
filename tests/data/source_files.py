"""Conversations about pictures, and every container they can lie in, written by the libraries that people use."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from picture_files import picture

COUNTS = (1, 0, 2, 1, 3, 0, 1, 2)  # images of each row


def pictures(rows=8, counts=COUNTS):
    """Bytes of the images of each row, no two alike."""
    return [[picture(10 * row + number) for number in range(counts[row % len(counts)])] for row in range(rows)]


def said(row):
    """Two questions and answers of a row."""
    return [(f"Question {row}?", f"Answer {row}."), (f"And {row} é 🐈?", f"So {row}.")]


def conversation(row):
    """What a source gives for a row of any layout but captions."""
    return [
        {"from": role, "value": text}
        for pair in said(row)
        for role, text in zip(("human", "gpt"), pair, strict=True)
    ]  # fmt: skip


def embedded(row_pictures):
    return [{"bytes": data, "path": None} for data in row_pictures]


TURNS = List({"from": Value("string"), "value": Value("string")})
IMAGES = List(ImageFeature())


def llava():
    """LLaVA's rows with a list of embedded images."""
    rows = [{"id": f"r{n}", "images": embedded(images), "conversations": conversation(n)} for n, images in
            enumerate(pictures())]  # fmt: skip
    return Dataset.from_list(rows, Features({"id": Value("string"), "images": IMAGES, "conversations": TURNS}))


def onevision():
    """One embedded image or none a row, and a column that is not read."""
    rows = [
        {"id": f"r{n}", "image": embedded(images)[0] if images else None, "conversations": conversation(n),
         "data_source": "somewhere"}
        for n, images in enumerate(pictures(counts=(1, 0, 1)))
    ]  # fmt: skip
    features = {"id": Value("string"), "image": ImageFeature(), "conversations": TURNS, "data_source": Value("string")}
    return Dataset.from_list(rows, Features(features))


def cauldron():
    """The Cauldron's and FineVision's rows, with a rating that is not read; no images are an empty list, or null."""
    pairs = List({name: Value("string") for name in ("user", "assistant", "source")})
    rows = [
        {"images": embedded(images) or (None if n % 2 else []), "relevance_ratings": [1, 2],
         "texts": [{"user": q, "assistant": a, "source": "s"} for q, a in said(n)]}
        for n, images in enumerate(pictures())
    ]  # fmt: skip
    return Dataset.from_list(
        rows, Features({"images": IMAGES, "texts": pairs, "relevance_ratings": List(Value("int64"))})
    )


def messages():
    """TRL's rows: messages of parts, and the images beside them."""
    part = {"type": Value("string"), "text": Value("string")}
    rows = []
    for n, images in enumerate(pictures()):
        turns = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for pair in said(n)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        turns[0]["content"] = [{"type": "image", "text": None}] * len(images) + turns[0]["content"]
        rows.append({"images": embedded(images), "messages": turns})
    features = {"images": IMAGES, "messages": List({"role": Value("string"), "content": List(part)})}
    return Dataset.from_list(rows, Features(features))


LAYOUTS = {"llava": llava, "onevision": onevision, "cauldron": cauldron, "messages": messages}


def to_parquet(data, folder, **options):
    """As `datasets` writes it, uncompressed images in large groups; with options, as pyarrow does with them."""
    folder.mkdir(parents=True)
    for shard in range(2):
        path, part = folder / f"train-{shard:05d}-of-00002.parquet", data.shard(2, shard, contiguous=True)
        if options:
            pq.write_table(part.data.table.combine_chunks(), path, row_group_size=3, **options)
        else:
            part.to_parquet(path)
    return str(folder)


def to_disk(data, folder, **options):
    data.save_to_disk(folder, num_shards=2)
    return str(folder)


def to_disk_of_splits(data, folder, **options):
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder)
    return f"{folder}:train"


def to_hub(data, folder, **options):
    """A data set that `load_dataset` reads without a network: the files of one, in a folder."""
    to_parquet(data, folder / "data")
    return f"hf:{folder}:train"


CONTAINERS = {
    "parquet": to_parquet,
    "snappy": lambda data, folder: to_parquet(data, folder, compression="snappy"),
    "dictionary": lambda data, folder: to_parquet(data, folder, compression="none", use_dictionary=True),
    "pages": lambda data, folder: to_parquet(
        data, folder, compression="none", use_dictionary=False, data_page_size=1, write_batch_size=1
    ),
    "pages-2": lambda data, folder: to_parquet(
        data, folder, compression="none", use_dictionary=False, data_page_version="2.0"
    ),
    "disk": to_disk,
    "splits": to_disk_of_splits,
    "hub": to_hub,
}


def write_shards(folder, members, name="train-{}.tar"):
    """Two tar shards of the members that `members(row)` gives, each a name and bytes."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / name.format(shard), "w") as tar:
            for row in range(shard * 4, shard * 4 + 4):
                for member, data in members(row):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder)


def members_of(row, images, name="r"):
    """A row of LLaVA's in webdataset's convention, images first."""
    one = len(images) == 1
    found = [(f"{name}{row}.jpg" if one else f"{name}{row}.{number}.png", data) for number, data in enumerate(images)]
    return [*found, (f"{name}{row}.json", json.dumps({"conversations": conversation(row)}).encode())]


def raw(folder, values):
    """A parquet file of plain columns."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(values), folder / "rows.parquet")
    return str(folder / "rows.parquet")
