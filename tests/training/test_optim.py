import json

import pytest
import torch
from golden_cases import golden_dir, load_json, load_tensors, requires_golden
from reference import build, ours

import prismatic
from prismatic.models.stages import halve_frozen, set_trainable, trained_and_frozen
from prismatic.training.optim import cosine_rate, decays, learning_rate, parameter_groups

B7 = "B_prismatic/B7_training"


def stages():
    path = golden_dir() / B7 / "fsdp_setup.json"
    return sorted(json.loads(path.read_text())) if path.exists() else []


def example_model():
    """The recorded model: its weights, and the configuration of the golden VLM that has the same parameters."""
    state = load_tensors(f"{B7}/example_checkpoint_finetune_forward.safetensors")
    checkpoint = torch.load(golden_dir() / B7 / "example_checkpoint_finetune.pt", weights_only=True)["model"]
    state |= {f"{module}.{key}": value for module, part in checkpoint.items() for key, value in part.items()}
    for case in load_json("B_prismatic/B5_vlm/cases.json").values():
        try:
            return build(case, state), state
        except (AssertionError, RuntimeError):
            continue
    raise AssertionError("no golden VLM has the parameters of the example checkpoint")


@requires_golden
def test_example_checkpoint_gives_the_recorded_logits():
    model, state = example_model()
    ids = state["input_ids"]
    marks = torch.full((1, model.vision_backbone.num_tokens), model.config.image_token_id)
    logits = model(input_ids=torch.cat([ids[:, :1], marks, ids[:, 1:]], 1), pixel_values=state["pixel_values"]).logits
    torch.testing.assert_close(logits, state["logits"], atol=1e-4, rtol=1e-5)


@requires_golden
@pytest.mark.parametrize("stage", stages())
def test_groups_and_rates_are_the_references(stage):
    case = load_json(f"{B7}/fsdp_setup.json")[stage]
    model, _ = example_model()
    set_trainable(model, stage)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), case["groups"][0]["weight_decay"])
    for group, expected in zip(groups, case["groups"], strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert {names[p] for p in group["params"]} == {ours(name) for name in expected["params"]}
    for step, rate in enumerate(case["lr_used_at_step"]):
        mine = learning_rate(
            step, peak=case["peak_lr"], total_steps=case["num_training_steps"], warmup_steps=case["num_warmup_steps"]
        )
        assert mine == pytest.approx(rate, abs=1e-12)


@requires_golden
def test_cosine_schedules():
    for case in load_json(f"{B7}/cosine_schedules.json"):
        total, warmup = case["num_training_steps"], case["num_warmup_steps"]
        mine = [learning_rate(i, peak=case["peak"], total_steps=total, warmup_steps=warmup) for i in range(total)]
        assert mine == pytest.approx(case["lr_used_at_step"], abs=1e-12)


def test_rates_of_the_vision_recipes_are_timms():
    from timm.scheduler import CosineLRScheduler

    settings = {"peak": 0.4, "minimum": 0.1, "total_steps": 20, "warmup_steps": 4, "warmup_from": 0.05}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = CosineLRScheduler(optimizer, 20, lr_min=0.1, warmup_t=4, warmup_lr_init=0.05)
    for step in range(20):
        theirs.step(step)
        assert cosine_rate(step, **settings) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_cosine_ends_at_the_minimum():
    rates = [learning_rate(i, peak=1.0, total_steps=50, warmup_steps=5, minimum=0.1) for i in range(51)]
    assert max(rates) == rates[5] == 1.0
    assert rates[50] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))


def test_vectors_and_biases_do_not_decay():
    assert decays("llm.embed.weight", torch.zeros(3, 2))
    assert not decays("norm.weight", torch.zeros(3))
    assert not decays("odd.bias", torch.zeros(3, 2))


def test_halving_touches_only_what_is_frozen():
    model, _ = prismatic.build("miniature", "miniature", "linear", pretrained=False)
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}
    set_trainable(model, "align")
    halve_frozen(model)
    for part, module in model.parts().items():
        expected = torch.float32 if part == "projector" else torch.bfloat16
        assert {p.dtype for p in module.parameters()} == {expected}
    assert trained_and_frozen(model) == [
        ("vision_backbone", 0, sizes["vision_backbone"]),
        ("projector", sizes["projector"], 0),
        ("llm", 0, sizes["llm"]),
    ]


def test_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="expected one of align, finetune"):
        set_trainable(torch.nn.Linear(1, 1), "fine-tune")
