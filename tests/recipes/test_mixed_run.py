"""Finetunes on data in several containers: begun, broken off and resumed, and all that is wrong before they begin."""

import io
import json

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from image_runs import interrupt, metrics
from killed import differences, left, outlives_kills

from prismatic.data.sources import open_source
from recipes.config.finetune import parse_finetune
from recipes.config.plan import data_of, parse_plan
from recipes.finetune import main

SMALL = ["--data.workers", "0", "--epochs", "2", "--global_batch_size", "8", "--per_device_batch_size", "4",
         "--data.held_out_limit", "1", "--save_every_steps", "2", "--eval_tasks", "[]"]  # fmt: skip


@pytest.fixture
def three(tmp_path):
    """The questions of the miniature world as parquet with pixels, as Arrow of `datasets`, and as they are."""
    source = open_source("miniature:48")
    pairs = List({"user": Value("string"), "assistant": Value("string")})
    rows = []
    for number in range(24):
        turns = [turn["value"] for turn in source[number]["conversations"]]
        images = []
        for image in source.load_images(number):
            file = io.BytesIO()
            image.save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        texts = [{"user": q, "assistant": a} for q, a in zip(turns[::2], turns[1::2], strict=True)]
        rows.append({"images": images, "texts": texts})
    data = Dataset.from_list(rows, Features({"images": List(ImageFeature()), "texts": pairs}))
    data.select(range(12)).to_parquet(tmp_path / "rows.parquet")
    data.select(range(12, 24)).save_to_disk(tmp_path / "disk")
    return f"{tmp_path}/rows.parquet@15,{tmp_path}/disk@5,miniature:48@4"


def command(root, name, sources, *more):
    return [*SMALL, "--data.sources", sources, "--run_root", str(root), "--run_id", name, *more]


def run(*arguments):
    return main(parse_finetune(command(*arguments)))


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_run_on_three_sources_that_breaks_off_ends_as_an_undisturbed_one(tmp_path, three, monkeypatch):
    summary = run(tmp_path, "whole", three)
    assert summary["steps"] == 6  # 15 + 5 + 4 rows in batches of 8, twice
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "broken", three)
    assert run(tmp_path, "broken", three)["steps"] == 6
    found, expected = left(tmp_path / "broken"), left(tmp_path / "whole")
    assert len(expected) > 1 and not differences(found, expected)
    assert [row["loss"] for row in metrics(tmp_path / "broken") if "loss" in row] == [
        row["loss"] for row in metrics(tmp_path / "whole") if "loss" in row
    ]
    written = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["data"]
    assert written["sources"] == three.split(",") and written["annotations"] == ""
    assert written["held_out"].endswith("held_out.json")
    again = parse_finetune(["--config_path", str(tmp_path / "whole" / "config.yaml")])
    assert again.data.sources == three.split(",") and not again.data.annotations

    for name in ("checkpoints/epoch-02", "summary.json"):  # as if killed before the end
        path = tmp_path / "whole" / name
        path.rename(tmp_path / path.name)
    table = pq.read_table(tmp_path / "rows.parquet").slice(0, 12)
    changed = table.to_pylist()
    changed[3]["texts"][0]["assistant"] = "something else"
    pq.write_table(table.from_pylist(changed, table.schema), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"other annotations of .*rows\.parquet now"):
        run(tmp_path, "whole", three)
    with pytest.raises(ValueError, match="--data.sources was .*@5.*, is .*@8"):
        run(tmp_path, "whole", three.replace("@5", "@8"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path, three):
    def arguments(name):
        return ["recipes/finetune.py", *command(tmp_path, str(name), three, "--data.workers", "2")]

    outlives_kills(arguments, tmp_path, "three sources")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("nowhere.parquet", "nothing at nowhere.parquet"),
        ("hf:someone/unheard-of:train", "cannot be loaded"),
        ("miniature:48@0.4,miniature:48@0.6", "is listed twice"),
        ("miniature:48@0.4", "is all there is"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_bad_sources_fail_before_weights_are_read(sources, message, tmp_path, monkeypatch):
    monkeypatch.setattr("prismatic.models.build.build", lambda *arguments, **options: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "r", sources)
    assert not (tmp_path / "r").exists()


def test_sources_replace_the_annotations_of_files_and_presets(tmp_path, capsys):
    def data(*arguments):
        return parse_finetune(list(arguments)).data

    assert data("--data.sources", "a.parquet").annotations == ""
    assert data("--model", "prism-clip+7b", "--data.sources", "a.parquet").annotations == ""
    (tmp_path / "mine.yaml").write_text(json.dumps({"data": {"sources": ["b.parquet@0.5", "c.json@0.5"]}}))
    mine = ["--config_path", str(tmp_path / "mine.yaml")]
    assert data(*mine).sources == ["b.parquet@0.5", "c.json@0.5"] and data(*mine).annotations == ""
    assert data(*mine, "--model", "prism-clip+7b").annotations == ""
    assert data(*mine, "--data.annotations", "a.json").sources == []
    assert data("--data.sources", "a/{000..123}.tar,hf:x/y:z:train@0.5").sources == [
        "a/{000..123}.tar", "hf:x/y:z:train@0.5"
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        data("--data.sources", "a.parquet", "--data.annotations", "a.json")
    assert "--data.annotations and --data.sources are both set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        data("--data.layout", "cauldrn")
    assert "did you mean cauldron" in capsys.readouterr().err


def test_a_plan_counts_the_rows_of_sources():
    source = open_source("miniature:48")
    found = data_of(parse_plan(["--data.sources", "miniature:48"]))
    assert found["examples"] == len(source) == 48
    assert found["text_only"] == sum(source.image_counts == 0) / 48
    given = data_of(parse_plan(["--data.sources", "miniature:48", "--examples", "7", "--text_length", "50"]))
    assert (given["examples"], given["text_length"]) == (7, 50)
