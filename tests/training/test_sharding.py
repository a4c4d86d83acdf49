"""Several processes are one: sharded in every mode, with uneven data, and from checkpoints of other numbers of them."""

import functools
import json
import os
import sys
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from sharded_worker import CASES, model_of

from prismatic.training import optim, sharding

WORKER = Path(__file__).with_name("sharded_worker.py")
TWO = [case for case in CASES if case != "hybrid"]
SOON = ["none", "full", "text-steps", "empty-last", "lora", "full-finetune", "bf16"]
LATER = [case for case in TWO if case not in SOON]  # slow tests'
RESUMED = ["resume-a-4", "resume-c-2", "resume-c-4"]
FOUR = ["full", "hybrid", "text-on-one-side", "empty-last"]


def launch(processes: int, out: Path, cases: list[str], **environment) -> None:
    environment |= {"PYTHONPATH": ":".join(sys.path)}
    done = forked.run([WORKER, out, *cases], processes=processes, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Losses and weights that so many processes made of a case; resumed by other numbers of processes than saved."""
    out = tmp_path_factory.mktemp("sharded")

    @functools.cache
    def group(processes: int, later: bool) -> Path:
        if processes < 4:
            cases = [case for case in TWO if (case in LATER) == later]
        if processes == 1:
            launch(1, out, [*cases, *([] if later else ["resume-a-2"])])
        elif processes == 2:
            group(1, False)
            resumed = ["resume-b-2", "resume-ddp-2", "resume-ddp-4"] if later else RESUMED
            launch(2, out, [*cases, *resumed])
        else:
            group(2, True)
            launch(4, out, [*FOUR, "resume-b-4"], NODES_OF="2")
        return out / str(processes)

    def read(processes: int, case: str):
        later = case in LATER or case.startswith("resume") and case not in (*RESUMED, "resume-a-2")
        file = group(processes, processes < 4 and later) / case
        return json.loads(file.with_suffix(".json").read_text()), load_file(file.with_suffix(".safetensors"))

    return read


def slow(*arguments):
    """A test that takes four processes, or a case that others are close to."""
    return pytest.param(*arguments, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("processes", "case"),
    [*(slow(2, c) if c in LATER else (2, c) for c in TWO if c != "bf16"), *(slow(4, c) for c in FOUR)],
)
def test_several_processes_are_one(read, processes, case):
    losses, weights = read(processes, case)
    expected, expected_weights = read(1, "full" if case == "hybrid" else case)
    assert len(losses) == 4 and losses == pytest.approx(expected, rel=1e-5)
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], atol=1e-4, rtol=0)


def test_every_case_trains_something_else(read):
    """Equal results would prove little if cases were equal: every one must differ from the plain one if it should."""
    plain = read(1, "full")[0]
    for case in ("text-steps", "empty-last", "lora", "full-finetune"):
        assert read(1, case)[0] != pytest.approx(plain, rel=1e-5), case


@pytest.mark.slow
def test_aligning_trains_something_else(read):
    assert read(1, "align")[0] != pytest.approx(read(1, "full")[0], rel=1e-5)


@pytest.mark.parametrize(
    "case", ["none", *(slow(c) for c in ("grad-op", "micro-batches-of-2", "text-on-one-side", "checkpointed"))]
)
def test_cases_that_change_nothing(read, case):
    assert read(1, case)[0] == pytest.approx(read(1, "full")[0], rel=1e-5)


def test_bfloat16_units_compute_what_autocast_does(read):
    assert read(2, "bf16")[0] == pytest.approx(read(1, "bf16")[0], rel=2e-3)


@pytest.mark.parametrize(
    ("case", "saved_by", "resumed_by"), [("a", 1, 2), slow("b", 2, 4), ("c", 2, 2), slow("ddp", 2, 2)]
)
def test_a_resumed_run_equals_one_that_was_not_interrupted(read, case, saved_by, resumed_by):
    expected, expected_weights = read(resumed_by, "none" if case == "ddp" else "full")
    first, _ = read(saved_by, f"resume-{case}-2")
    rest, weights = read(resumed_by, f"resume-{case}-4")
    if saved_by == resumed_by:
        assert first + rest == expected
        assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())
    assert first + rest == pytest.approx(expected, rel=1e-4)
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=0)


def test_decay_groups_are_those_of_whole_shapes():
    model = model_of("full-finetune")
    decayed, spared = (group["params"] for group in optim.parameter_groups(model.named_parameters(), 0.1))
    assert {p.ndim for p in decayed} <= {2, 3, 4} and model.llm.lm_head.weight in set(decayed)
    assert model.llm.model.norm.weight in set(spared)


def test_what_is_a_unit():
    model = model_of("finetune")
    assert [type(block).__name__ for block in sharding.blocks(model)] == ["LlamaDecoderLayer"] * 2
    assert sharding.frozen_tower(model) == set(model.vision_backbone.parameters())
    model = model_of("full-finetune")
    assert [type(block).__name__ for block in sharding.blocks(model)] == ["LlamaDecoderLayer"] * 2 + ["Block"]
    assert not sharding.frozen_tower(model)
    assert len(sharding.blocks(model_of("lora"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("fulll", 2), "unknown sharding 'fulll'"), (("hybrid", 6, 4), "6 processes are not a multiple of the 4")],
)
def test_a_mode_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharding.check_sharding(*arguments)


def test_fewer_processes_than_expected_are_refused(monkeypatch):
    sharding.check_processes(2, 2)
    sharding.check_processes(1, None)
    with pytest.raises(ValueError, match="--processes is 8, but 1 joined one group: on CPU use"):
        sharding.check_processes(1, 8)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="the launcher was asked for several processes, but this one is alone"):
        sharding.check_processes(1, None)
