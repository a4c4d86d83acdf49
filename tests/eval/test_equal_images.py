"""Equal images inside a file are one, without reading what need not be; and absent ones are none, however written."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from spatial_files import WRITERS, base64_of, image, png, write_parquet, write_text, write_tsv
from test_embedded_images import bytes_read, noise, rows_of, stored
from test_spatial_tasks import examples_of

from eval.scoring.bootstrap import bootstrap_interval, intervals
from eval.tasks import get_task

EMPTY = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"", "path": "x.png"}]


TORN = {"row_group_size": 2}


@pytest.mark.parametrize("options", [{}, {"compression": "SNAPPY"}, TORN, {"compression": "ZSTD"} | TORN])
def test_parquet(tmp_path, options):
    """Also across columns and groups of rows; the image that is found is the same."""
    pictures, others = [1, 2, 1, 3, 2, 1], [None, 1, 4, None, 4, 5]
    rows = [{"image": image(n), "other": image(m)} for n, m in zip(pictures, others, strict=True)]
    read = rows_of(
        write_parquet(tmp_path / "x.parquet", rows, ("image", "other"), **options), tmp_path, ("image", "other")
    )
    firsts = [(row["image"][0].partition("#")[2], *(one.partition("#")[2] for one in row["other"])) for row in read]
    assert firsts == [
        ("0/image",), ("1/image", "0/image"), ("0/image", "2/other"), ("3/image",), ("1/image", "2/other"),
        ("0/image", "5/other"),
    ]  # fmt: skip
    assert [stored(tmp_path, row["image"][0]) for row in read] == [png(n) for n in pictures]


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY"])
def test_parquet_lists_and_texts(tmp_path, compression):
    lists = [[1, 2], [], [2, 2, 3], [1]]
    rows = [{"n": 0, "image": [image(n) for n in its]} for its in lists]
    read = rows_of(write_parquet(tmp_path / "x.parquet", rows, compression=compression), tmp_path)
    assert [[one.partition("#")[2] for one in row["image"]] for row in read] == [
        ["0/image/0", "0/image/1"], [], ["0/image/1", "0/image/1", "2/image/2"], ["0/image/0"],
    ]  # fmt: skip
    rows = [{"image": base64_of(n)} for n in (1, 2, 1)]
    read = rows_of(write_parquet(tmp_path / "t.parquet", rows, (), compression), tmp_path)
    assert [row["image"] for row in read] == [("t.parquet#0/image",), ("t.parquet#1/image",), ("t.parquet#0/image",)]


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY"])
@pytest.mark.parametrize("empty", EMPTY)
def test_absent_images_are_none(tmp_path, empty, compression):
    rows = [{"image": image(1), "other": empty}, {"image": image(2), "other": image(3)}]
    path = write_parquet(tmp_path / "x.parquet", rows, ("image", "other"), compression)
    assert [len(row["other"]) for row in rows_of(path, tmp_path, ("image", "other"))] == [0, 1]
    WRITERS["blink"](tmp_path)
    for file in (tmp_path / "blink").rglob("*.parquet"):
        its = [{n: v if v is not None else empty for n, v in row.items()} for row in pq.read_table(file).to_pylist()]
        write_parquet(file, its, [f"image_{n}" for n in (1, 2, 3, 4)], compression)
    shown = {task: len(get_task("blink").read(tmp_path, "val")[2 * n].images) for n, task in
             enumerate(get_task("blink").num_examples["val"])}  # fmt: skip
    assert shown == dict.fromkeys(shown, 1) | {"Multi-view_Reasoning": 2, "Jigsaw": 3, "Visual_Similarity": 4}


def test_json(tmp_path):
    rows = [{"id": n, "image": base64_of(picture)} for n, picture in enumerate((4, 5, 4))]
    for path in (
        write_text(tmp_path / "x.json", rows),
        write_text(tmp_path / "x.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        read = rows_of(path, tmp_path)
        assert [row["image"][0].partition("#")[2] for row in read] == ["0/image", "1/image", "0/image"]
        assert stored(tmp_path, read[2]["image"][0]) == png(4)


def test_of_other_sizes_nothing_is_read(tmp_path):
    """Where a file holds its images as they are, those whose size no other has are left alone."""
    sizes = [200_000 + n for n in range(20)] + [150_000, 150_000]
    rows = [{"image": {"bytes": noise(n, size), "path": None}} for n, size in enumerate(sizes)]
    path = write_parquet(tmp_path / "x.parquet", rows)
    rows_of(path, tmp_path)
    path.touch()  # so that it is opened anew
    before = bytes_read()
    assert len({row["image"] for row in rows_of(path, tmp_path)}) == 22
    assert 2 * 150_000 < bytes_read() - before < 1_200_000 < path.stat().st_size


def test_damaged_pages_are_told(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"image": {"bytes": noise(n, 5000), "path": None}} for n in range(4)])
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    content[chunk.data_page_offset : chunk.data_page_offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cut off, damaged or no parquet"):
        rows_of(path, tmp_path)


def test_intervals_draw_images_not_rows(tmp_path):
    """Three questions about each of twenty pictures, all right or all wrong: as sure as twenty questions."""
    right = [random.Random(n).random() < 0.5 for n in range(20)]
    text = "Q?\nA. 1\nB. 2"
    rows = [
        {"id": f"mazenav.vqa.{n}.{kind}", "text": text, "image": image(n), "oracle_option": "A"}
        for n in range(20)
        for kind in range(3)
    ]
    write_parquet(tmp_path / "spatialeval/vqa/test-00000.parquet", rows)
    task, examples = examples_of("spatialeval", tmp_path)
    assert len({example.image for example in examples}) == 20
    records = [example.record() | {"output": "A" if right[n // 3] else "B"} for n, example in enumerate(examples)]
    records = [record | task.scorer.judge(record) for record in records]
    found = intervals(records, task.scorer.summarise(records), "accuracy")["accuracy"]
    assert found == pytest.approx(bootstrap_interval(list(map(float, right)), list(range(20))), abs=0.06)
    assert np.diff(found) > 1.4 * np.diff(bootstrap_interval([r["score"] for r in records], list(range(60))))


def mm(index, picture, **cells):
    row = {"index": index, "question": "Q?", "hint": "nan", "A": "x", "B": "y", "C": "nan", "D": "", "answer": "A"}
    return row | {"category": "object_localization", "image": picture} | cells


def read_mm(root, *rows):
    write_tsv(root / "mmbench/MMBench_DEV_EN.tsv", rows)
    return get_task("mmbench-spatial").read(root, "dev")


def test_rows_without_an_image_are_left_out_and_counted(tmp_path):
    with pytest.warns(UserWarning, match="MMBench_DEV_EN.tsv: 2 rows without an image are left out"):
        examples = read_mm(tmp_path, mm(1, base64_of(1)), mm(2, ""), mm(3, "", category="ocr"), mm(4, base64_of(4)))
    assert [example.id for example in examples] == ["1", "4"]
    with pytest.raises(ValueError, match="row 2 .*answer 'Z'"):
        read_mm(tmp_path, mm(1, base64_of(1)), mm(2, ""), mm(3, base64_of(1), answer="Z"))


@pytest.mark.parametrize("gap", ["", "nan", " NaN "])
def test_options_after_an_empty_one_move_up(tmp_path, gap):
    first, second = read_mm(
        tmp_path, mm(1, base64_of(1), C=gap, D="z", answer="D"), mm(2, base64_of(1), A=gap, C="w", answer="B")
    )
    assert (first.info["choices"], first.answer) == (["x", "y", "z"], "C")
    assert (second.info["choices"], second.answer) == (["y", "w"], "A")
    with pytest.raises(ValueError, match="answer 'C', but that option is empty"):
        read_mm(tmp_path, mm(1, base64_of(1), C=gap, D="z", answer="C"))


def test_categories_in_any_spelling(tmp_path):
    examples = read_mm(tmp_path, mm(1, base64_of(1), category="Object Localization"), mm(2, "1"))
    assert [example.subset for example in examples] == ["object_localization"] * 2


def test_indices_that_pandas_wrote_as_fractions(tmp_path):
    examples = read_mm(tmp_path, mm("1.0", base64_of(1)), mm("1000001.0", "1"), mm("2000001.0", "1.0"))
    assert [(e.id, e.image, e.info["circular"]) for e in examples] == [
        (id, "mmbench/MMBench_DEV_EN.tsv#0/image", "1") for id in ("1", "1000001", "2000001")
    ]
    with pytest.raises(ValueError, match="'1.5' is not a valid whole number"):
        read_mm(tmp_path, mm("1.5", base64_of(1)))
