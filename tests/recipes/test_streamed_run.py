"""Finetunes on a stream: the rows as an index gives them, broken off and resumed, and all that is refused."""

import io
import itertools
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from image_runs import interrupt, metrics
from killed import differences, left

from prismatic.data import rows, samplers, streams
from prismatic.data.sources import open_source
from prismatic.data.streams import open_stream
from recipes.config.finetune import parse_finetune
from recipes.config.plan import parse_plan
from recipes.finetune import main

ROWS, STEPS, BATCH = 24, 5, 8
SMALL = [
    "--data.workers",
    "0",
    "--max_steps",
    str(STEPS),
    "--global_batch_size",
    str(BATCH),
    "--per_device_batch_size",
    "4",
    "--data.sampler",
    "shuffle",
    "--save_every_steps",
    "2",
    "--eval_tasks",
    "[]",
]
PAIRS = List({"user": Value("string"), "assistant": Value("string")})


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    """Rows are drawn among fewer than there are."""
    monkeypatch.setattr(streams, "BUFFER", 10)


@pytest.fixture
def folder(tmp_path):
    """Two parquet files of miniature questions, some without an image; rows are called by their number."""
    source = open_source("miniature:48")
    made = []
    for number in range(ROWS):
        turns = [turn["value"] for turn in source[number]["conversations"]]
        texts = [{"user": q, "assistant": a} for q, a in zip(turns[::2], turns[1::2], strict=True)]
        images = [{"bytes": as_png(image), "path": None} for image in source.load_images(number)]
        made.append({"id": number, "images": images, "texts": texts})
    assert {len(row["images"]) for row in made} == {0, 1}
    data = Dataset.from_list(made, Features({"id": Value("int64"), "images": List(ImageFeature()), "texts": PAIRS}))
    (tmp_path / "data").mkdir()
    data.select(range(14)).to_parquet(tmp_path / "data" / "a.parquet")
    data.select(range(14, ROWS)).to_parquet(tmp_path / "data" / "b.parquet")
    return tmp_path / "data"


def as_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def change(path, edit):
    """Edits the rows of a parquet file."""
    table = pq.read_table(path)
    changed = table.to_pylist()
    edit(changed)
    pq.write_table(table.from_pylist(changed, table.schema), path)


def run(root, name, sources, *more):
    return main(
        parse_finetune([*SMALL, "--data.sources", str(sources), "--run_root", str(root), "--run_id", name, *more])
    )


def losses(run_dir):
    return [row["loss"] for row in metrics(run_dir) if "loss" in row]


def order(source, seed=7):
    """The numbers of rows of a stream, without an end."""
    return (row["id"] for row in source.shuffled(seed))


@pytest.fixture
def processor():
    """Of the miniature model; weights are not needed."""
    from prismatic.models.load import start

    config = parse_finetune([])
    return start(
        vision_backbone=config.vision_backbone, llm=config.llm, projector=config.projector,
        image_resize_strategy=config.image_resize_strategy, image_size=config.image_size,
        prompt_style=config.prompt_style,
    )[1]  # fmt: skip


def batches(source, processor, rank=0, world=1, workers=0, kind=rows.StreamedBatches, **data):
    data = SimpleNamespace(**{"workers": workers, "packing": False, "on_bad_image": "error"} | data)
    config = SimpleNamespace(
        data=data, epochs=1, max_steps=STEPS, global_batch_size=BATCH, per_device_batch_size=2, seed=7,
        max_length=512, stage="finetune",
    )  # fmt: skip
    return kind(config, source, processor, rank, world)


def read(source, processor, done=0, **options):
    return [batch for _, loader in batches(source, processor, **options).epochs(done) for batch in loader]


def same(one, two):
    assert len(one) == len(two) and len(one) > 0
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key]


@pytest.mark.usefixtures("quick")
def test_a_stream_trains_as_the_same_rows_by_index_do(tmp_path, folder, monkeypatch):
    more = ("--data.packing", "true")
    run(tmp_path, "streamed", folder, "--data.streaming", "true", *more)
    taken = list(itertools.islice(order(open_stream(str(folder))), STEPS * BATCH))
    monkeypatch.setattr(rows.FinetuneBatches, "plan", lambda self, epoch: samplers.micro_batches(taken, 0, 1, BATCH, 4))
    run(tmp_path, "indexed", folder, *more)
    assert losses(tmp_path / "streamed") == losses(tmp_path / "indexed")
    weights = [{key: value for key, value in left(tmp_path / name).items() if key.endswith(".safetensors")}
               for name in ("streamed", "indexed")]  # fmt: skip
    assert weights[0] and weights[0] == weights[1]


def test_every_pass_has_all_rows_in_another_order(folder):
    source = open_stream(str(folder))
    first, second = (list(itertools.islice(it, ROWS)) for it in [order(source)] * 2)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second and first != sorted(first)
    assert list(itertools.islice(order(source), ROWS)) == first
    assert list(itertools.islice(order(source, seed=8), ROWS)) != first


def test_workers_processes_and_resuming_change_no_row(folder, processor):
    source = open_stream(str(folder))
    alone = read(source, processor)
    assert len(alone) == STEPS * BATCH // 2
    same(read(source, processor, workers=1), alone)
    same(read(source, processor, done=3), alone[3 * BATCH // 2 :])
    same(read(source, processor, done=3, workers=4), alone[3 * BATCH // 2 :])
    assert read(source, processor, done=STEPS) == []
    shares = [read(source, processor, rank=rank, world=2) for rank in (0, 1)]
    # each has two micro-batches a step
    joined = [batch for step in range(STEPS) for share in shares for batch in share[2 * step : 2 * step + 2]]
    same(joined, alone)


@pytest.mark.parametrize("packing", [False, True])
def test_batches_are_those_of_the_same_rows_by_index(packing, folder, processor, monkeypatch):
    source = open_stream(str(folder))
    taken = list(itertools.islice(order(source), STEPS * BATCH))
    monkeypatch.setattr(rows.FinetuneBatches, "plan", lambda self, epoch: samplers.micro_batches(taken, 0, 1, BATCH, 2))
    indexed = read(open_source(str(folder)), processor, packing=packing, kind=rows.FinetuneBatches)
    same(read(source, processor, packing=packing), indexed)


def test_others_images_are_not_decoded(folder, processor, monkeypatch):
    source = open_stream(str(folder))
    decoded, real = [], streams.open_rgb
    monkeypatch.setattr(streams, "open_rgb", lambda *arguments: decoded.append(1) or real(*arguments))
    ranks = [read(source, processor, rank=rank, world=2) for rank in (0, 1)]
    images = sum(len(b["pixel_values"]) for batches in ranks for b in batches if b["pixel_values"] is not None)
    assert len(decoded) == images
    read(source, processor, done=STEPS - 1)
    assert len(decoded) <= images + BATCH


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_an_error_or_skipped(workers, folder, processor):
    change(folder / "a.parquet", lambda all: all[5]["images"][0].update(bytes=b"no image"))
    source = open_stream(str(folder))
    with pytest.raises(ValueError, match=r"^.*data: row \d+ of the stream \(id '5'\), image 'images\[0\]': unreadable"):
        read(source, processor, workers=workers)
    assert sum(batch["skipped"] for batch in read(source, processor, workers=workers, on_bad_image="skip")) >= 1


def test_a_row_that_breaks_the_rules_is_named(folder, processor, monkeypatch):
    change(folder / "a.parquet", lambda all: all[5]["texts"].clear())
    with pytest.raises(ValueError, match=r"^.*data: row 5 of the stream \(id '5'\) has in column texts"):
        open_stream(str(folder))
    monkeypatch.setattr(streams, "FIRST", 4)  # beyond the first rows it is found when it comes
    with pytest.raises(ValueError, match=r"^.*data: row \d+ of the stream \(id '5'\) has in column texts"):
        read(open_stream(str(folder)), processor)


def test_image_files_lie_below_the_root(tmp_path):
    features = Features({"image": Value("string"), "caption": Value("string")})
    Dataset.from_list([{"image": "a.png", "caption": "Red."}], features).to_parquet(tmp_path / "rows.parquet")
    source = open_stream(str(tmp_path / "rows.parquet"), image_root=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere is not a folder; expected the image root"):
        source.check_images()
    source = open_stream(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=r"1 of 1 images of .* are missing"):
        source.check_images()
    next(iter(open_source("miniature:48").load_images(0))).save(tmp_path / "a.png")
    source.check_images()
    assert source.load_image(0).mode == "RGB" and source[0]["conversations"][1]["value"] == "Red."
    assert len(list(itertools.islice(source.shuffled(0), 3))) == 3  # one row, again and again


def test_columns_are_known_by_the_first_rows_where_nothing_declares_them(tmp_path):
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "Red."}]
    lines = [json.dumps({"id": f"row-{number}", "conversations": turns}) for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    stream = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", streaming=True)
    source = streams.StreamedSource("hf:x/y:train", stream, "auto", tmp_path)
    assert source[2] == {"id": "row-2", "image": None, "conversations": turns}
    assert {row["id"] for row in itertools.islice(source.shuffled(0), 3)} == {"row-0", "row-1", "row-2"}


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nowhere.parquet", "nothing at nowhere.parquet"),
        ("hf:someone/unheard-of:train", "cannot be loaded"),
        ("hf:someone/unheard-of", "names no split"),
        ("a.parquet@20000", r"reads all of a source: write a\.parquet"),
        ("rows.json", "rows.json is json, which is read by index"),
        ("miniature:48", "miniature:48 is miniature, which is read by index"),
        ("shards/x.tar", "is tar, which is read by index"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_sources_that_are_no_stream_fail_before_weights_are_read(location, message, tmp_path, monkeypatch):
    monkeypatch.setattr("prismatic.models.build.build", lambda *arguments, **options: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, "r", location, "--data.streaming", "true")
    assert "\n" not in str(error.value) and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.sources", "a.parquet", "--data.sampler", "shuffle"], "needs --max_steps"),
        (["--model", "prism-clip+7b", "--data.sources", "a.parquet", "--max_steps", "5"], "set --data.sampler shuffle"),
        (["--data.sources", "a.parquet,b.parquet", *SMALL], "not a.parquet,b.parquet"),
        (["--data.annotations", "a.json", *SMALL], "not a.json"),
    ],
)
def test_settings_that_no_stream_can_have_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_finetune(["--data.streaming", "true", *arguments])
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_plan(["--data.streaming", "true", "--data.sources", "a.parquet"])
    assert "a stream cannot be counted" in capsys.readouterr().err


def test_a_damaged_file_is_one_line(folder):
    (folder / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(ValueError, match="cannot be read") as error:
        open_stream(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_run_that_breaks_off_ends_as_an_undisturbed_one(tmp_path, folder, monkeypatch):
    streaming = ("--data.streaming", "true")
    run(tmp_path, "whole", folder, *streaming)
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "broken", folder, *streaming)
    run(tmp_path, "broken", folder, *streaming)
    assert not differences(left(tmp_path / "broken"), left(tmp_path / "whole"))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == STEPS

    for name in ("checkpoints/epoch-01", "summary.json"):  # as if killed before the end
        path = tmp_path / "whole" / name
        path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="--data.streaming was True, is False"):
        run(tmp_path, "whole", folder)
    change(folder / "a.parquet", lambda all: all[3]["texts"][0].update(assistant="something else"))
    with pytest.raises(ValueError, match="trained on other data .other annotations now"):
        run(tmp_path, "whole", folder, *streaming)
