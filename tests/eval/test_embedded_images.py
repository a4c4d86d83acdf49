"""Images inside parquet, TSV and json: each is found by its reference, and no file is read whole for one of them."""

import base64
import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image
from spatial_files import base64_of, image, png, write_parquet, write_text, write_tsv

from eval.data import embedded
from eval.data.embedded import rows_with_images, source
from eval.fingerprints import job_fingerprint
from eval.runner import Job
from eval.task import Example
from eval.tasks import get_task


def stored(root: Path, reference: str) -> bytes:
    return source(root, reference).getvalue()


def rows_of(path: Path, root: Path, columns=("image",)):
    return list(rows_with_images(path, root, columns))


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY"])
def test_parquet_structs(tmp_path, compression):
    """Two columns, one with gaps, in several groups of rows, read in no order."""
    rows = [
        {"id": n, "image": image(n), "other": image(n + 20) if n % 3 else None, "words": ["a", str(n)]}
        for n in range(9)
    ]
    path = write_parquet(tmp_path / "a/x.parquet", rows, ("image", "other"), compression, row_group_size=4)
    read = rows_of(path, tmp_path, ("image", "other"))
    assert [row["id"] for row in read] == list(range(9)) and read[5]["words"] == ["a", "5"]
    assert read[7]["image"] == ("a/x.parquet#7/image",)
    assert [len(row["other"]) for row in read] == [0, 1, 1] * 3
    for n in (8, 0, 5, 4, 3):
        assert stored(tmp_path, read[n]["image"][0]) == png(n)
        assert [stored(tmp_path, other) for other in read[n]["other"]] == ([png(n + 20)] if n % 3 else [])
    only = rows_of(path, tmp_path)
    assert "other" not in only[0], "bytes that nobody asked for are not read"


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY"])
def test_parquet_lists_and_base64(tmp_path, compression):
    sizes = [2, 0, 1, 3]
    lists = [{"n": n, "image": [image(10 * n + k) for k in range(size)]} for n, size in enumerate(sizes)]
    path = write_parquet(tmp_path / "lists.parquet", lists, compression=compression, row_group_size=3)
    read = rows_of(path, tmp_path)
    assert read[3]["image"] == tuple(f"lists.parquet#3/image/{k}" for k in range(3)) and not read[1]["image"]
    for n, size in enumerate(sizes):
        assert [stored(tmp_path, one) for one in read[n]["image"]] == [png(10 * n + k) for k in range(size)]
    path = write_parquet(tmp_path / "texts.parquet", [{"image": base64_of(n)} for n in range(3)], (), compression)
    assert [stored(tmp_path, *row["image"]) for row in rows_of(path, tmp_path)] == [png(n) for n in range(3)]


def test_tsv_cells(tmp_path):
    """Quotes, breaks and tabs in texts, lists of images, the index of another row, and equal images."""
    rows = [
        {"index": 7, "question": 'A "big"\tone,\nor two?', "image": base64_of(1)},
        {"index": 9, "question": "It's 5\" long", "image": str([base64_of(2), base64_of(3)])},
        {"index": 1000007, "question": "", "image": "7"},
        {"index": 4, "question": "None", "image": base64_of(1)},
        {"index": 5, "question": "last", "image": ""},
    ]
    path = write_tsv(tmp_path / "t.tsv", rows)
    read = rows_of(path, tmp_path)
    assert [row["question"] for row in read] == [row["question"] for row in rows]
    assert [row["index"] for row in read] == ["7", "9", "1000007", "4", "5"]
    first = ("t.tsv#0/image",)
    assert [row["image"] for row in read] == [first, ("t.tsv#1/image/0", "t.tsv#1/image/1"), first, first, ()]
    assert [stored(tmp_path, one) for row in read[:2] for one in row["image"]] == [png(1), png(2), png(3)]
    assert stored(tmp_path, "t.tsv#2/image") == png(1), "also by the row that names another"
    plain = "index\timage\tquestion\r\n1\t" + base64_of(4) + '\tx "y" z\r\n\r\n2\t1\t\'q\r\n'
    read = rows_of(write_text(tmp_path / "w.tsv", "\ufeff" + plain), tmp_path)
    assert [(row["question"], row["image"]) for row in read] == [
        ('x "y" z', ("w.tsv#0/image",)),
        ("'q", ("w.tsv#0/image",)),
    ]


def test_json_and_json_lines(tmp_path):
    rows = [
        {"id": 0, "question": 'Where is "image": "x"?', "image": base64_of(5), "objects": [{"name": "a"}]},
        {"image": "data:image/png;base64," + base64_of(6), "id": 1, "question": "b\\"},
        {"id": 2, "image": None},
    ]
    (tmp_path / "slashes.json").write_text(json.dumps(rows).replace("/", "\\/"))
    lines = "\n".join(map(json.dumps, rows))
    for path in (
        write_text(tmp_path / "a.json", rows),
        write_text(tmp_path / "b.jsonl", lines),
        tmp_path / "slashes.json",
    ):
        read = rows_of(path, tmp_path)
        assert [row["question"] for row in read[:2]] == [row["question"] for row in rows[:2]]
        assert [row["image"] for row in read] == [(f"{path.name}#0/image",), (f"{path.name}#1/image",), ()]
        assert [stored(tmp_path, *row["image"]) for row in read[:2]] == [png(5), png(6)]
        assert read[0]["objects"] == [{"name": "a"}]


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("kind", ["tsv", "json", "parquet"])
def test_images_are_left_where_they_are(tmp_path, kind):
    """Neither the index of a file holds its images, nor is the file read again for one of them."""
    sizes, texts = 200_000, [base64.b64encode(noise(n, 200_000)).decode() for n in range(40)]
    rows = [{"index": n, "image": text} for n, text in enumerate(texts)]
    path = tmp_path / f"big.{kind}"
    if kind == "tsv":
        write_tsv(path, rows)
    elif kind == "json":
        write_text(path, rows)
    else:
        write_parquet(path, [{"image": {"bytes": noise(n, sizes), "path": None}} for n in range(40)])
    rows_of(write_parquet(tmp_path / "small.parquet", [{"image": image(0)}]), tmp_path)  # imports what it needs
    tracemalloc.start()
    read = rows_of(path, tmp_path)
    stored(tmp_path, read[30]["image"][0])
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 500_000 < path.stat().st_size / 10
    before = bytes_read()
    assert stored(tmp_path, read[17]["image"][0]) == noise(17, sizes)
    assert bytes_read() - before < 400_000


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_files_are_themselves(tmp_path):
    """A path is a path, whatever it is called; a reference is one only into a file that can hold images."""
    for name in ("a#1/b.png", "x.parquet.d/7.png", "x.zip#3/image"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
        assert source(tmp_path, name) == tmp_path / name and embedded.is_there(tmp_path, name)
        assert embedded.digest(tmp_path, name) == hashlib.sha256(png(1)).hexdigest()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("../x.tsv#0/image", "leads out of the data root"),
        ("/etc/x.json#0/image", "leads out of the data root"),
        ("a/../../x.parquet#0/image", "leads out of the data root"),
        ("x.parquet#9/image", "no image in row 9"),
        ("x.parquet#0/image/0", "no image in row 0, column image, number 0"),
        ("x.parquet#0/pixels", "lacks pixels"),
        ("x.parquet#0/index", "expected images as bytes or base64"),
        ("x.tsv#1/image/3", "no image in row 1"),
        ("x.tsv#9/image", "no image in row 9"),
        ("x.tsv#0/pixels", "lacks pixels"),
        ("x.json#9/image", "no image in row 9"),
        ("x.json#0/pixels", "no image in row 0"),
    ],
)
def test_references_to_nothing(tmp_path, reference, message):
    rows = [{"index": n, "image": base64_of(n)} for n in range(2)]
    write_tsv(tmp_path / "x.tsv", rows), write_text(tmp_path / "x.json", rows)
    write_parquet(tmp_path / "x.parquet", [{"index": n, "image": image(n)} for n in range(2)])
    with pytest.raises(ValueError, match=message):
        source(tmp_path, reference)
    if "leads out" in message:
        with pytest.raises(ValueError, match="expected a path inside the data root"):
            Example("1", "a.png", "?", "A", more_images=(reference,))


def test_what_is_no_image_is_told(tmp_path):
    rows = [{"index": 0, "image": "%" * 80}, {"index": 1, "image": base64.b64encode(b"x" * 80).decode()}]
    read = rows_of(write_tsv(tmp_path / "x.tsv", rows), tmp_path)
    with pytest.raises(ValueError, match="is no valid base64"):
        source(tmp_path, read[0]["image"][0])
    with pytest.raises(OSError, match="cannot identify"), Image.open(source(tmp_path, read[1]["image"][0])):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("\n\n", "lacks image"),
        ("index\timage\timage\n", "a column twice"),
        ("index\tpicture\n1\tx\n", "lacks image"),
        ("index\timage\n1\t7\n", "the image of row 0 is '7'"),
        ("index\timage\n1\t1\n", "the image of row 0 is '1'"),
        ("index\timage\n1\t" + "A" * 80 + "\textra\n", "row 0 has 3 cells, expected 2"),
        ("index\timage\n1\t" + "A" * 80 + '\n2\t"open\n', "a quote that opens in row 1 is never closed"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    path = write_text(tmp_path / "x.tsv", content)
    with pytest.raises(ValueError, match=message):
        rows_of(path, tmp_path)


def test_a_cut_off_parquet_file_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"image": image(n)} for n in range(3)])
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut off, damaged or no parquet"):
            rows_of(path, tmp_path)


def test_fingerprints_cover_the_bytes(tmp_path):
    """Another image changes a run's fingerprint, wherever it lies; a text that nobody reads does not."""

    def fingerprint(*pictures, note="x"):
        rows = [{"index": n, "image": base64_of(p), "note": note} for n, p in enumerate(pictures)]
        read = rows_of(write_tsv(tmp_path / "x.tsv", rows), tmp_path)
        one = Example("1", read[0]["image"][0], "?", "A", "", {"choices": ["a", "b"]}, read[1]["image"])
        return job_fingerprint(Job("embspatial", get_task("embspatial"), [one], tmp_path), "weights", {})

    prints = [fingerprint(1, 2), fingerprint(1, 3), fingerprint(2, 1), fingerprint(1, 2, note="y")]
    assert len(set(prints)) == 3 and prints[0] == prints[3]
