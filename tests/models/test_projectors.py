from functools import partial

import pytest
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block

from prismatic.models.projectors import build_projector, check_projector

FOLDER = "B_prismatic/B1_projectors"
CASES = case_names(f"{FOLDER}/cases.json")
SEEDED = [name for name in CASES if "seeded_init" in load_json(f"{FOLDER}/cases.json")[name]] if CASES else []


def projector_of(name):
    """The projector that a case describes, with the case's tensors."""
    case = load_json(f"{FOLDER}/cases.json")[name]
    tokens, vision_dim = case["input_shape"][1:]
    llm_dim = case["output_shape"][-1]
    names = ("fused-gelu-mlp", "gelu-mlp", "linear", "pretrained-decoder", "truncated", "transformer")
    kind = next(n for n in names if name.startswith(n.replace("-", "_")))
    tail = None
    if kind == "truncated":
        norm_layer = partial(LayerNorm, eps=1e-6)
        tail = ([Block(vision_dim, 4, qkv_bias=True, norm_layer=norm_layer) for _ in range(2)], norm_layer(vision_dim))
    torch.manual_seed(vision_dim)
    projector = build_projector(
        kind, vision_dim, llm_dim, num_tokens=tokens, num_heads=case.get("num_heads", 4), tail=tail,
        num_prefix_tokens=case.get("num_prefix_tokens", 0),
    )  # fmt: skip
    return projector, load_tensors(f"{FOLDER}/{name}.safetensors")


def part(g, prefix):
    return {k.removeprefix(prefix).removeprefix("projector."): v for k, v in g.items() if k.startswith(prefix)}


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_output_and_input_gradient(name):
    projector, g = projector_of(name)
    projector.load_state_dict(part(g, "param."))
    features = g["input"].requires_grad_()
    output = projector(features)
    torch.testing.assert_close(output, g["output"], atol=2e-5, rtol=1e-5)
    if "grad_probe" in g:
        (output * g["grad_probe"]).sum().backward()
        atol = 1e-5 * g["grad.input"].abs().max().item() + 1e-7
        torch.testing.assert_close(features.grad, g["grad.input"], atol=atol, rtol=1e-4)


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_new_weights_are_the_references(name):
    projector, g = projector_of(name)
    expected = part(g, "seeded_init.")
    for key, value in expected.items():
        torch.testing.assert_close(projector.state_dict()[key], value, atol=0, rtol=0)
    if not expected and name.startswith("truncated"):
        assert projector[-1].weight.abs().max() == 0


@requires_golden
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("pretrained_decoder")])
def test_decoder_weights_are_taken_over(name):
    projector, g = projector_of(name)
    projector.load_decoder(part(g, "checkpoint."))
    for key, value in part(g, "after_load.").items():
        # The stored head is the one drawn after loading (it equals param.head); loading itself leaves zeros.
        expected = torch.zeros_like(value) if key.startswith("head.") else value
        torch.testing.assert_close(projector.state_dict()[key], expected, atol=0, rtol=0)


def test_a_decoder_of_another_shape_is_refused_by_name():
    projector = build_projector("pretrained-decoder", 24, 40, num_tokens=17, num_heads=4, num_prefix_tokens=1)
    state = {f"decoder.{k}": v for k, v in projector.state_dict().items() if not k.startswith("in_proj")}
    state |= {"encoder.head.weight": torch.zeros(24, 24), "encoder.head.bias": torch.zeros(24)}
    state["decoder.pos_embed"] = torch.zeros(1, 10, 24)
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 10, 24\), expected \(1, 17, 24\)"):
        projector.load_decoder(state)


@pytest.mark.parametrize(
    ("name", "fused", "aligned", "message"),
    [
        ("gelu-mpl", False, False, "did you mean 'gelu-mlp'"),
        ("no-align+gelu-mlp", False, False, "gelu-mlp"),
        ("fused-gelu-mlp", False, False, "single one: use 'gelu-mlp'"),
        ("transformer", True, False, "fused: use 'fused-gelu-mlp'"),
        ("pretrained-decoder", False, False, "choose an '-aligned' backbone"),
    ],
)
def test_projectors_that_do_not_fit_are_refused(name, fused, aligned, message):
    with pytest.raises(ValueError, match=message):
        check_projector(name, fused=fused, aligned=aligned)
