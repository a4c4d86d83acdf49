"""Files of the spatial benchmarks with anything in them: good examples, or one ValueError that names the file."""

import csv
import io
import json
import random

import points_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spatial_files
from mutations import ODD, mutated, reads, refuses

from eval.data import embedded
from eval.tasks import get_task

MUTATIONS = 60  # of each benchmark
KINDS = (".json", ".jsonl", ".parquet", ".tsv", ".csv")
WRITERS = spatial_files.WRITERS | points_files.WRITERS
SPLITS = {"mmvp": ("test", "corrected"), "blink": ("spatial",)}


def broken(path, rng) -> bytes:
    """The content of a file with something odd in one place, or cut off."""
    content = path.read_bytes()
    if rng.random() < 0.1:
        return content[: rng.randrange(len(content))]
    if path.suffix == ".parquet":
        return _broken_table(path, rng)
    if path.suffix == ".json":
        return json.dumps(mutated(json.loads(content), rng)).encode()
    if path.suffix == ".jsonl":
        rows = mutated([*map(json.loads, content.splitlines())], rng)
        return "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows])).encode()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    rows = list(csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter))
    row = rng.choice(rows)
    odd = rng.choice(
        ["", "nan", "7", "a\tb", '"', "x\ny", "[]", "['', '']", "\0", "../x", "(z)", "A" * 70, "\ufeff", "-1"]
    )
    action = rng.random()
    if action < 0.1:
        row.pop()
    elif action < 0.2:
        row.append(odd)
    else:
        row[rng.randrange(len(row))] = odd
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if action > 0.8 else 0, escapechar="\\")
    writer.writerows(rows)
    return file.getvalue().encode()


def _broken_table(path, rng) -> bytes:
    table = pq.read_table(path)
    name, rows = rng.choice(table.column_names), len(table)
    place = table.column_names.index(name)
    odd, action = rng.choice(ODD), rng.random()
    try:
        if action < 0.1:
            table = table.drop_columns([name])
        elif action < 0.5:
            values = table[name].to_pylist()
            values[rng.randrange(rows)] = odd
            table = table.set_column(place, name, pa.array(values, table[name].type))
        else:
            table = table.set_column(place, name, pa.array([odd] * rows))
        return _written(table)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return _written(table.set_column(place, name, pa.nulls(rows)))


def _written(table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("name", WRITERS)
def test_mutated_files(name, tmp_path):
    rng, refused, tried = random.Random(name), 0, 0
    WRITERS[name](tmp_path)

    def read_images(examples):
        for image in {image for example in examples for image in example.images}:
            try:
                embedded.digest(tmp_path, image)
            except (ValueError, OSError) as error:
                assert "\n" not in str(error)

    for split in SPLITS.get(name, (get_task(name).split,)):
        task = get_task(f"{name}:{split}")
        files = [path for path in sorted(tmp_path.rglob("*")) if path.suffix in KINDS and reads(task, tmp_path, path)]
        for _ in range(MUTATIONS):
            path = rng.choice(files)
            refused += refuses(task, tmp_path, path, broken(path, rng), named=path.name, also=read_images)
            tried += 1
    assert tried > refused > MUTATIONS / 10
    print(f"{name}: {refused} of {tried} refused")


def test_errors_name_the_row(tmp_path):
    for name, file, change, message in (
        (
            "embspatial",
            "embspatial/embspatial_bench.json",
            {"answer": 4},
            r"row 2 is not as expected \(4, expected 0 to 3\)",
        ),
        ("embspatial", "embspatial/embspatial_bench.json", {"image": None}, r"row 2 .*0 images, expected one"),
        ("embspatial", "embspatial/embspatial_bench.json", {"image": "x"}, r"image is no image in base64"),
        (
            "embspatial",
            "embspatial/embspatial_bench.json",
            {"answer_options": ["a", ""]},
            r"row 2 .*2 to 26, none empty",
        ),
    ):
        WRITERS[name](tmp_path)
        rows = json.loads((tmp_path / file).read_text())
        rows[2] |= change
        (tmp_path / file).write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=message):
            get_task(name).read(tmp_path, get_task(name).split)
    for old, new, message in (
        ("aaaa1111-1", "aaaa11111", r"row 1 .*expected 8 characters, then -flip, -1 or both"),
        ("orientation_viewpoint", "taste", r"row 4 .*category 'taste'"),
        ("\tB\theight", "\tC\theight", r"row 1 .*answer 'C', but that option is empty"),
    ):
        WRITERS["3dsrbench"](tmp_path)
        path = tmp_path / "3dsrbench/3dsrbench_v1_vlmevalkit_circular.tsv"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            get_task("3dsrbench").read(tmp_path, "circular")
