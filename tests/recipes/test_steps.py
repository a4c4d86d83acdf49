"""`--max_steps` counts through as many passes over the data as it takes, and rows that are cut are counted."""

import json

import pytest
from image_runs import metrics, run_align
from test_probe import probe

from prismatic.data.conversation_dataset import ConversationDataset
from prismatic.models.llm import load_tokenizer
from prismatic.text.conversations import tokenize_conversation
from prismatic.training.optim import cosine_rate, schedule
from recipes.config.finetune import parse_finetune
from recipes.config.plan import parse_plan
from recipes.finetune import main
from recipes.plan import make_plan

pytestmark = pytest.mark.usefixtures("quick")


def test_a_finetune_of_two_and_a_half_passes(tmp_path):
    """In the third one every row was seen twice, half of them once more; the rate falls over all five steps."""
    arguments = "--data.annotations miniature:16 --data.sampler shuffle --data.workers 0 --data.held_out_limit 1 "
    arguments += "--global_batch_size 8 --per_device_batch_size 8 --eval_tasks [] --epochs 1 --run_id r "
    config = parse_finetune([*arguments.split(), "--run_root", str(tmp_path), "--max_steps", "5", "--max_length", "14"])
    summary = main(config)
    assert summary["steps"] == 5 and summary["passes"] == 2.5
    steps = [row for row in metrics(tmp_path / "r") if "loss" in row]
    assert [row["epoch"] for row in steps] == [0, 0, 1, 1, 2]
    rate = schedule(config, 5)
    assert [row["learning_rate"] for row in steps] == [rate(step) for step in range(5)]
    assert sorted(path.name for path in (tmp_path / "r" / "checkpoints").glob("epoch*")) == [
        "epoch-01", "epoch-02", "epoch-03"
    ]  # fmt: skip

    rows = ConversationDataset(config.data.annotations, tmp_path)
    tokenizer = load_tokenizer("miniature")
    lengths = [len(tokenize_conversation(rows[n]["conversations"], tokenizer, None)[0]) for n in range(len(rows))]
    cut = [length - 14 for length in lengths if length > 14]
    assert len(rows) == 16 and 0 < len(cut) < 16
    assert sum(row["cut_rows"] for row in steps[:4]) == 2 * len(cut)
    assert sum(row["cut_tokens"] for row in steps[:4]) == 2 * sum(cut)
    assert summary["cut_rows"] == sum(row["cut_rows"] for row in steps)
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["cut_tokens"] == summary["cut_tokens"]


def test_an_alignment_beyond_its_epochs(tmp_path):
    rates = "--learning_rate 3e-4 --min_learning_rate 3e-5 --warmup_epochs 1 --warmup_learning_rate 1e-5".split()
    summary = run_align(tmp_path, "r", "--max_steps", "7", *rates)
    assert summary["steps"] == 7 and summary["passes"] == pytest.approx(7 / 3)
    steps = [row for row in metrics(tmp_path / "r") if "loss" in row]
    assert [row["epoch"] for row in steps] == [0, 0, 0, 1, 1, 1, 2]
    rates = [cosine_rate(n, peak=3e-4, minimum=3e-5, total_steps=7, warmup_steps=3, warmup_from=1e-5) for n in range(7)]
    assert [row["learning_rate"] for row in steps] == pytest.approx(rates) and rates[0] == 1e-5


def test_a_probe_beyond_its_epochs(tmp_path):
    (found,) = probe(tmp_path, "r", "--data_root", "miniature:9:3", "--epochs", "1", "--max_steps", "3")["probes"]
    assert found["steps"] == 3 and [epoch["epoch"] for epoch in found["epochs"]] == [1, 2]  # of two steps each


def test_a_plan_beyond_its_epochs():
    arguments = "--examples 1000 --global_batch_size 100 --per_device_batch_size 4 --epochs 1 --max_steps 25"
    plan = make_plan(parse_plan(arguments.split()))
    assert plan.steps == 25 and plan.passes == 2.5
