"""Questions about several images, and questions that count together: shared computation changes nothing."""

import json

import jsonlines
import pytest
import torch
from PIL import Image
from spatial_files import WRITERS, png, write_parquet
from streamed import build

from eval import runner
from eval.engine import Question, SharedPrefixEngine
from eval.generate_engine import PlainEngine
from eval.report.compare import compare
from eval.report.runs import read_runs
from eval.task import Choose, Generate
from prismatic.miniature.scenes import scene

WHICH = "Which of them has a red circle?\n(A) the first\n(B) the second"
LETTERS, WORDS = Choose(("A", "B", "C")), Choose(("a red circle", "nothing at all", "a square"))


@pytest.fixture(scope="module")
def parts():
    model, processor = build("miniature", prompt_style="auto")
    # Answers of a short word would prove little: they end where few words end them.
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(["]", "▁blue"])
    return model.eval(), processor, [Image.fromarray(scene(77, index).image) for index in range(6)]


@pytest.fixture(scope="module")
def asked(parts):
    """Sets of one to three pictures, with questions of every kind about each."""
    _, _, pictures = parts
    sets = [pictures[0], pictures[:2], pictures[2:5], pictures[5], [pictures[1], pictures[0]], pictures[3:6]]
    kinds = [Generate(8), LETTERS, WORDS, Choose(("no", "yes it is")), Choose(("A", "B"))]
    questions = [
        Question(place, prompt, kinds[(place + number) % len(kinds)])
        for number, prompt in enumerate([WHICH, "What is there?", "Where is the blue square in all of these images?"])
        for place in (4, 0, 2, 1, 5, 3)
    ]
    return sets, questions


def answers(engine, sets, questions):
    return engine.answer([engine.prepare(pictures) for pictures in sets], questions)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_sets_of_any_size_in_one_batch(parts, asked, batch_size):
    (model, processor, _), (sets, questions) = parts, asked
    expected = answers(PlainEngine(model, processor, 1), sets, questions)
    given = answers(SharedPrefixEngine(model, processor, batch_size), sets, questions)
    assert [answer.text for answer in given] == [answer.text for answer in expected]
    for one, other in zip(given, expected, strict=True):
        assert one.probabilities == (other.probabilities and pytest.approx(other.probabilities, abs=1e-5))
    assert len({answer.text for answer in given if not answer.probabilities}) >= 4, "answers that hardly differ"


def test_the_order_of_pictures_matters(parts):
    model, processor, pictures = parts
    engine = SharedPrefixEngine(model, processor, 8)
    questions = [Question(place, WHICH, LETTERS) for place in range(3)]
    one, other, same = answers(engine, [pictures[:2], pictures[1::-1], pictures[:2]], questions)
    assert one.probabilities != pytest.approx(other.probabilities, abs=1e-4)
    assert one.probabilities == pytest.approx(same.probabilities, abs=1e-6)


def test_images_beyond_the_context_are_an_error_of_that_question(parts):
    model, processor, pictures = parts
    many = [pictures[0]] * (1024 // processor.num_image_tokens + 1)
    questions = [Question(0, WHICH, LETTERS), Question(1, WHICH, LETTERS)]
    long, short = answers(SharedPrefixEngine(model, processor, 8), [many, pictures[:1]], questions)
    assert "this model's context has 1024" in long.error and not short.error
    alone = answers(PlainEngine(model, processor, 1), [many, pictures[:1]], questions)
    assert [answer.error for answer in alone] == [long.error, None]


@pytest.fixture(scope="module")
def world(tmp_path_factory, parts):
    """Data of the benchmarks with several images, or with questions that count together, and a saved model."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("blink", "3dsrbench", "mmbench-spatial", "mmvp"):
        WRITERS[name](folder / "data")
    parts[0].save_pretrained(folder / "model"), parts[1].save_pretrained(folder / "model")
    return folder


TASKS = ["blink:val", "3dsrbench", "mmbench-spatial", "mmvp", "mmvp:corrected+llava+text"]


def evaluate(world, out, *more):
    from recipes.config.evaluate import parse_evaluate
    from recipes.evaluate import main

    return main(
        parse_evaluate(
            [
                "--model",
                str(world / "model"),
                "--tasks",
                ",".join(TASKS),
                "--data_root",
                str(world / "data"),
                "--allow_partial",
                "true",
                "--precision",
                "fp32",
                "--out",
                str(world / out),
                *more,
            ]  # fmt: skip
        )
    )


def samples(world, out, task):
    with jsonlines.open(world / out / task.replace(":", "-") / "samples.jsonl") as reader:
        return list(reader)


def test_strict_evaluations_equal_shared_ones(world):
    shared, strict = evaluate(world, "shared"), evaluate(world, "strict", "--strict", "true")
    for task in TASKS:
        assert shared["tasks"][task]["errors"] == 0
        for one, other in zip(samples(world, "shared", task), samples(world, "strict", task), strict=True):
            assert (one["id"], one["output"], one["score"]) == (other["id"], other["output"], other["score"])
            if one.get("probabilities"):
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert shared["tasks"][task]["metrics"] == strict["tasks"][task]["metrics"]
    compared = compare(read_runs([world / "shared", world / "strict"]))["tasks"]
    for task, main, units in (("mmvp", "pair_accuracy", 2), ("3dsrbench", "circular_accuracy", 2)):
        score = shared["tasks"][task]["metrics"][main]
        assert compared[task]["main"] == main and compared[task]["images"] == units
        assert compared[task]["scores"]["shared"][main] == compared[task]["scores"]["strict"][main] == score
        assert compared[task]["differences"]["strict"][main]["difference"] == 0
    report = (world / "shared/report.html").read_text()
    assert "another image of this question" in report
    rows = {row["id"]: row for row in samples(world, "shared", "blink:val")}
    assert len(rows["val_Visual_Similarity_1"]["more_images"]) == 3
    assert "more_images" not in rows["val_Counting_1"]


def test_turned_options_share_the_picture_s_prefix(world):
    """Rows of one question are one group of the runner: the picture is read and encoded once."""
    for name in ("3dsrbench", "mmbench-spatial"):
        (job,) = runner.read_jobs([name], world / "data", allow_partial=True)
        groups = runner._by_image(job, {})
        assert len(groups) == len({example.info["circular"] for example in job.examples}) < len(job.examples)


def test_one_damaged_image_of_a_set(world, tmp_path):
    from spatial_files import image

    rows = [
        {
            "idx": n, "question": "?", "prompt": WHICH, "choices": ["a", "b"], "answer": "(A)", "image_1": image(n),
            "image_2": {"bytes": b"no picture" if n else png(3), "path": None}, "image_3": None, "image_4": None,
        }
        for n in range(2)
    ]  # fmt: skip
    for task in ("Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation"):
        named = [row | {"idx": f"{task}-{row['idx']}"} for row in rows[: 2 if task[0] == "M" else 1]]
        write_parquet(
            tmp_path / f"data/blink/{task}/val-0.parquet", named, ["image_1", "image_2", "image_3", "image_4"]
        )
    (job,) = runner.read_jobs(["blink"], tmp_path / "data", allow_partial=True)
    from accelerate import PartialState

    from eval.generate_engine import load_engine

    engine = load_engine(str(world / "model"), dtype=torch.float32, device="cpu", batch_size=8)
    entry = runner.run_job(job, engine, PartialState(cpu=True), tmp_path / "out", "f", box_frame="image")
    records = [json.loads(line) for line in (tmp_path / "out/blink/samples.jsonl").read_text().splitlines()]
    bad = [record for record in records if "error" in record]
    assert entry["errors"] == len(bad) == 1
    assert bad[0]["error"].startswith("blink/Multi-view_Reasoning/val-0.parquet#1/image_2: unreadable (Unidentified")
