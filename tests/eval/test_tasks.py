"""Tasks read raw downloads as the reference does, and ask what it asks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from golden_cases import ROOT, golden_dir, load_json, requires_golden

from eval.data.reference_metadata import read_prepared
from eval.data.selection import seeded_order, slim_subset
from eval.task import Example
from eval.tasks import get_task
from prismatic.text.prompts import chat_template
from prismatic.text.rendering import render_prompt

FAMILIES = {
    "refcoco": "refcoco",
    "ocid-ref": "ocid-ref",
    "tally-qa": "tallyqa",
    "vsr": "vsr",
    "ai2d": "ai2d",
    "vqa-v2": "vqav2",
    "gqa": "gqa",
    "vizwiz": "vizwiz",
    "text-vqa": "textvqa-ocr",
    "pope": "pope",
}
INDEX = golden_dir() / "C_vlmeval" / "index"


def indices() -> list[str]:
    return sorted(p.relative_to(INDEX).as_posix() for p in INDEX.glob("*/expected/datasets/*/metadata*.json"))


def without_id(example: Example):
    """What raw and prepared data agree on; size and the like are in the raw data only."""
    return example.image, example.question, example.answer, example.subset


@requires_golden
@pytest.mark.parametrize("path", indices())
def test_raw_data_gives_the_reference_index(path):
    family, name = path.split("/")[0], path.split("/")[-1]
    task = get_task(FAMILIES[family])
    raw = task.read(INDEX / family / "raw", task.split)
    expected = read_prepared(INDEX / path, family)
    assert len(expected) > 5 or "slim" in name
    if family == "ai2d":  # the reference shuffles in the order in which its disk happened to list the files
        order = [
            f.removesuffix(".json") for f in load_json("C_vlmeval/index/manifest.json")["ai2d"]["listdir_order_used"]
        ]
        raw = sorted(raw, key=lambda e: order.index(Path(e.image).name))
    if "slim" in name:
        raw = slim_subset(raw, int(name.removesuffix(".json").rsplit("-")[-1]))
    assert [without_id(e) for e in raw] == [without_id(e) for e in expected]
    if family != "ai2d":
        assert [e.id for e in raw] == [e.id for e in expected]


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_full_index_keeps_the_reference_order(family):
    """Read back in the raw order, and shuffled again, prepared examples come as their file has them."""
    path = next(
        p for p in (INDEX / family / "expected" / "datasets" / family).glob("metadata*") if "slim" not in p.name
    )
    rows = json.loads(path.read_text()).values()
    questions = [r.get("ref_expression") or r.get("caption") or r["question"] for r in rows]
    assert [e.question for e in seeded_order(read_prepared(path, family))] == questions


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_data_is_read_where_raw_data_is_missing(family, tmp_path):
    shutil.copytree(INDEX / family / "expected" / "datasets", tmp_path / "datasets")
    task = get_task(FAMILIES[family])
    assert len(task.read(tmp_path, task.split)) == len(task.read(INDEX / family / "raw", task.split))


@requires_golden
def test_orders_that_the_manifest_records():
    manifest = load_json("C_vlmeval/index/manifest.json")
    shuffled = seeded_order(get_task("refcoco").read(INDEX / "refcoco" / "raw", "val"))
    assert [e.id for e in shuffled] == ["-".join(map(str, key)) for key in manifest["refcoco"]["order_full"]]
    assert len(shuffled) == len(set(e.id for e in shuffled))
    shuffled = seeded_order(get_task("pope").read(INDEX / "pope" / "raw", "test"))
    assert [e.id for e in shuffled] == ["-".join(map(str, key)) for key in manifest["pope"]["order_full"]]
    sizes = manifest["refcoco"]["image_sizes_wh"]
    for example in get_task("refcoco").read(INDEX / "refcoco" / "raw", "val"):
        assert [example.info["width"], example.info["height"]] == sizes[Path(example.image).name]


@requires_golden
def test_other_splits_hold_what_the_pickles_hold():
    raw = INDEX / "refcoco" / "raw"
    for split in ("testA", "testB", "test"):
        expected = sum(
            len(ref["sentences"])
            for path in (raw / "download" / "refcoco").glob("*/*.as_json.json")
            for ref in json.loads(path.read_text())
            if ref["split"] == split
            and (split != "test" or "refcocog" in str(path))
            and (split == "test" or "refcocog" not in str(path))
        )
        assert len(get_task(f"refcoco:{split}").read(raw, split)) == expected


@requires_golden
def test_prompts_equal_the_reference():
    compared = 0
    for row in load_json("C_vlmeval/prompts.json"):
        if row["family"] not in FAMILIES:
            continue  # captioning
        example = Example("0", "", row["question"], "", info={"choices": row.get("choices")})
        text = get_task(FAMILIES[row["family"]]).prompt(example)
        conversation = [{"from": "human", "value": text}]
        assert render_prompt(conversation, chat_template(row["builder"])) == row["prompt"]
        compared += 1
    assert compared > 200


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_questions_and_options_equal_the_reference_task_runner(family):
    task, calls = get_task(FAMILIES[family]), load_json(f"C_vlmeval/scoring/{family}/model_calls.json")
    path = next(
        p for p in (INDEX / family / "expected" / "datasets" / family).glob("metadata*") if "slim" not in p.name
    )
    tasks = [task, get_task("textvqa")] if family == "text-vqa" else [task]  # it asks with the hint, then without
    asked = [(t, e) for e in seeded_order(read_prepared(path, family)) for t in tasks]
    assert len(asked) == len(calls)
    for (task, example), call in zip(asked, calls, strict=True):
        prompt = render_prompt([{"from": "human", "value": task.prompt(example)}], chat_template("pure"))
        assert prompt == call["prompt"]
        assert list(getattr(task.answer(example), "options", ())) == (call["return_string_probabilities"] or [])


def test_no_task_depends_on_the_process(tmp_path):
    """The same ids in the same order under another hash seed."""
    if not INDEX.is_dir():
        pytest.skip("no golden set")
    script = f"""
from pathlib import Path
from eval.tasks import get_task
for family, name in {FAMILIES!r}.items():
    task = get_task(name)
    print([example.id for example in task.read(Path({str(INDEX)!r}) / family / "raw", task.split)])
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(said[0]) > 500
