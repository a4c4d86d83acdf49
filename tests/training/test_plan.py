import json
import re
from pathlib import Path

import forked
import pytest
import torch
from catalogue import MODELS, llm_on_meta
from plan_cases import CASES, LORA, SUPERVISED, TEXT, Case, small_config

from prismatic.flops import flop_counter
from prismatic.models import build
from prismatic.planning import memory as plan
from prismatic.planning.fake_step import Step, meta_model
from prismatic.training import losses
from recipes.config.plan import parse_plan
from recipes.plan import make_plan

HERE = Path(__file__).parent
LLAMA_2_7B, ADDED_ROWS = 6_738_415_616, 2 * 64 * 4096  # <PAD> and <image>, padded to 64 rows, of embedding and head
GELU_MLP = (1024 * 4096 + 4096) + (4096 * 4096 + 4096)


def planned(case: Case, *size: int, **changes) -> plan.Plan:
    settings = {
        "stage": case.stage, "lora": LORA, "precision": case.precision, "sharding_mode": case.sharding,
        "gradient_checkpointing": case.checkpointing, "reduce_dtype": "float32", "gpus": case.processes,
        "global_batch_size": case.processes * case.rows * case.accumulation, "per_device_batch_size": case.rows,
        "available": 10**10, "max_length": TEXT, "supervised": SUPERVISED, "text_length": 60, "text_only": 0.0,
        "examples": 1000, "epochs": 1, "max_steps": None, "flops_per_second": 1e12,
    }  # fmt: skip
    return plan.plan_finetune(small_config(*size), **(settings | changes))


def measured(name: str, layers: int) -> int:
    done = forked.run([HERE / "measured_step.py", name, layers], processes=CASES[name].processes, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["allocated"]


def for_model(*argv: str) -> plan.Plan:
    return make_plan(parse_plan(list(argv)))


QUICK = ("lora",)


class TestPeak:  # classes run on other workers than the rest of the file
    @pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
    def test_peak_is_what_real_steps_allocate(self, name):
        peak = planned(CASES[name], CASES[name].layers).peak
        allocated = measured(name, CASES[name].layers)
        print(f"{name}: planned {peak / 1e6:.1f} MB, measured {allocated / 1e6:.1f} MB, {peak / allocated:.4f}")
        assert peak == pytest.approx(allocated, rel=0.02 if CASES[name].processes == 1 else 0.15)


@pytest.mark.slow
def test_sizes_of_llama_by_hand():
    done = for_model("--model", "baseline-clip-vit-l-336px+7b", "--gpus", "8", "--max_length", "64")
    trained = LLAMA_2_7B + ADDED_ROWS + GELU_MLP
    rows = {part: (trained, frozen) for part, trained, frozen in done.parameters}
    assert rows["llm"] == (LLAMA_2_7B + ADDED_ROWS, 0) and rows["projector"] == (GELU_MLP, 0)
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    root = trained - 32 * block
    tower = rows["vision_backbone"][1] * 2
    assert done.memory["gathered parameters"] == 2 * (root + 2 * block)
    assert 0 <= done.memory["optimizer states"] - 8 * trained // 8 < 4096  # and a step count of each tensor
    assert 0 <= done.memory["parameters"] - tower - 4 * trained // 8 < 4096  # and buffers
    assert done.memory["communication"] >= block * (2 + 2)  # the preset sums gradients in bfloat16, as the reference
    tokens = 300 + 576  # a block is computed in the forward, again, and twice in the backward pass
    linear = 8 * tokens * 32 * block + 6 * 300 * 32_064 * 4096
    assert done.flops / 128 == pytest.approx(linear, rel=0.1)
    assert done.steps == 2 * -(-665_298 // 128)
    assert done.hours * 3600 == pytest.approx(done.steps * done.flops / 8 / (0.4 * 312e12))


@pytest.mark.slow
def test_sharding_divides():
    case = CASES["bf16"]
    runs = {
        (mode, gpus): planned(case, 3, 2, sharding_mode=mode, gpus=gpus, global_batch_size=64).memory
        for mode, gpus in (("none", 1), ("none", 16), ("full", 8), ("hybrid", 16), ("grad-op", 8))
    }
    whole = runs["none", 1]["optimizer states"]
    for (mode, gpus), memory in runs.items():
        ranks = {"none": 1, "hybrid": 8}.get(mode, gpus)
        assert memory["optimizer states"] == pytest.approx(whole / ranks, rel=1e-3)
        assert (memory["gathered parameters"] > 0) == (mode != "none")
    assert runs["none", 1]["communication"] == 0 and runs["none", 16]["communication"] > 0
    assert runs["grad-op", 8]["gathered parameters"] > runs["full", 8]["gathered parameters"]


def test_what_a_stage_trains_has_states():
    states = {s: planned(Case(stage=s), 1, 2).memory["optimizer states"] for s in ("align", "lora", "finetune")}
    assert states["align"] < states["lora"] < states["finetune"]
    assert planned(Case("full-finetune"), 1, 2).memory["optimizer states"] > states["finetune"]


@pytest.mark.slow
def test_any_number_of_rows_follows_from_two():
    model = meta_model(small_config(2, 2), "finetune", lora={}, precision="bf16", gradient_checkpointing=True)
    step = Step(model, "bf16", sharded=False, supervised=SUPERVISED)
    two, three, nine = (step.memory(rows, TEXT) for rows in (2, 3, 9))
    assert torch.equal(two + 7 * (three - two), nine)


def test_operations_are_those_that_torch_counts_on_real_tensors():
    from measured_step import batch_of, build

    model = build("finetune", "fp32", True, 2)
    batch = batch_of(model, 1)
    with flop_counter() as counter:
        losses.TEXT.loss_sum(model, batch).backward()
    meta = meta_model(small_config(2), "finetune", lora={}, precision="fp32", gradient_checkpointing=True)
    mine = Step(meta, "fp32", sharded=False, supervised=SUPERVISED).flops(TEXT, image=True)
    assert mine == counter.get_total_flops()


def test_the_largest_batch_is_the_last_that_fits():
    case = CASES["checkpointing"]
    size = planned(case, 1, 2, global_batch_size=64, per_device_batch_size=16).peak
    done = planned(case, 1, 2, global_batch_size=64, per_device_batch_size=32, available=size)
    assert done.largest_batch == 16 and not done.fits
    assert planned(case, 1, 2, available=10**6).largest_batch == 0


def test_what_is_replaced_for_the_trace_is_put_back():
    from transformers import masking_utils

    from vision_backbones import soft_cap

    before = masking_utils.find_packed_sequence_indices, soft_cap.CHUNK
    planned(CASES["finetune"], 1, 2)
    assert before == (masking_utils.find_packed_sequence_indices, soft_cap.CHUNK)


LAYERS = 2  # of an LLM whose blocks are all alike
SAME_SHAPES = re.compile("llama2-|vicuna-v15-|-pure|-chat|-instruct")  # 7B is 7B, whatever it was trained on
OF_EACH_LLM = {(SAME_SHAPES.sub("", model["llm"]), model.get("stage")): name for name, model in MODELS.items()}


@pytest.fixture
def shallow_llms(monkeypatch):
    """LLMs of two blocks, under towers of all blocks."""

    def shallow(**parts):
        config = meta_config(**parts)
        config.text_config.num_hidden_layers = LAYERS
        return config

    meta_config = build.meta_config
    monkeypatch.setattr(build, "meta_config", shallow)


def of_model(name: str) -> plan.Plan:
    return for_model("--model", name, "--gpus", "8", "--max_length", "256")


@pytest.mark.slow
class TestEveryModel:
    @pytest.mark.parametrize("name", MODELS)
    def test_every_named_model_is_planned(self, name, shallow_llms):
        done = of_model(name)
        assert done.fits and done.hours > 0.2


@pytest.mark.slow
class TestEveryLLM:
    @pytest.mark.parametrize("name", OF_EACH_LLM.values())
    def test_every_llm_is_planned_in_full(self, name, request):
        done = of_model(name)
        assert done.fits and done.hours > 1
        request.getfixturevalue("shallow_llms")
        shallow = of_model(name)
        full, two = (dict((part, trained) for part, trained, _ in p.parameters)["llm"] for p in (done, shallow))
        blocks = [sum(p.numel() for p in block.parameters()) for block in llm_on_meta(MODELS[name]["llm"]).model.layers]
        assert full - two == sum(blocks[LAYERS:]) and done.flops > 4 * shallow.flops


def command(*arguments: str) -> str:
    done = forked.run(["-m", "prismatic", "plan", *arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_command_line(tmp_path):
    out = command("--json", str(tmp_path / "plan.json"))
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] and sum(written["memory"].values()) == written["peak"]
    assert out.splitlines()[-1].startswith(f"fits: {written['peak'] / 1e9:.1f} of 73.6 GB")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "aligned-decoder-clip-vit-l-336px+7"], "did you mean aligned-decoder-clip-vit-l-336px+7b"),
        (["--gpus", "0"], "--gpus is 0: expected more than 0"),
        (["--gpus", "two"], "gpus"),
        (["--gpu_memory", "-80"], "--gpu_memory is -80"),
        (["--mfu", "40"], "--mfu is 40"),
        (["--sharding", "fsdp"], "expected full or grad-op or hybrid or none"),
        (["--gpu_memroy", "80"], "did you mean --gpu_memory"),
    ],
)
def test_mistakes_are_one_line(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_plan(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and expected in error


def test_processes_that_cannot_share_the_batch_are_refused():
    with pytest.raises(ValueError, match="not a multiple of 3 processes"):
        for_model("--model", "prism-clip+7b", "--gpus", "3")
    with pytest.raises(ValueError, match="hybrid"):
        for_model("--model", "prism-clip+7b", "--gpus", "12", "--sharding", "hybrid", "--global_batch_size", "192")
