import dataclasses
import shutil
from functools import partial

import pytest
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden, unsaid_heads
from timm.layers import LayerNorm, Mlp, QuickGELU
from timm.models.vision_transformer import Block
from torch import nn

import prismatic
from prismatic.models.projectors import build_projector, check_projector, decoder_config
from vision_backbones import BackboneSpec, create_backbone, get_spec, list_backbones
from vision_backbones.backbone_files import save_backbone
from vision_backbones.vit import build_vit

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
        tail = (
            [Block(vision_dim, unsaid_heads(), qkv_bias=True, norm_layer=norm_layer) for _ in range(2)],
            norm_layer(vision_dim),
        )
    torch.manual_seed(vision_dim)
    projector = build_projector(
        kind, vision_dim, llm_dim, num_tokens=tokens, num_heads=case.get("num_heads", unsaid_heads()), tail=tail,
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


@pytest.mark.parametrize("prefix", [{}, {"num_prefix_tokens": 0}, {"num_prefix_tokens": 1}])
def test_prefix_tokens_alone_are_not_seen(prefix):
    projector = build_projector("pretrained-decoder", 24, 40, num_tokens=17, num_heads=4, **prefix)
    nn.init.normal_(projector.head.weight)
    features = torch.randn(1, 17, 24)
    other = features.clone()
    other[:, 0] += 1
    assert torch.equal(projector(features), projector(other)) == (prefix.get("num_prefix_tokens") == 1)


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
        ("gelu-mpl", False, False, "did you mean gelu-mlp"),
        ("no-align+gelu-mlp", False, False, "gelu-mlp"),
        ("fused-gelu-mlp", False, False, "single one: use 'gelu-mlp'"),
        ("transformer", True, False, "fused: use 'fused-gelu-mlp'"),
        ("pretrained-decoder", False, False, "choose an '-aligned' backbone"),
    ],
)
def test_projectors_that_do_not_fit_are_refused(name, fused, aligned, message):
    with pytest.raises(ValueError, match=message):
        check_projector(name, fused=fused, aligned=aligned)


CLIP = BackboneSpec(
    "tiny-clip",
    arch="vit_base_patch16_clip_quickgelu_224",
    image_size=32,
    arch_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4},
    soft_cap=30.0,
    aligned=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class HandMadeStudent(nn.Module):
    """What MaskEmbed trains, on the full mask and without the head to the teacher, put together from timm's blocks."""

    def __init__(self, width, depth, heads, head, mlp_ratio=4.0, qk_norm=False, qkv_bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_vit(CLIP)
        self.encoder.head = nn.Linear(24, width) if head == "linear" else Mlp(24, 96, width, act_layer=QuickGELU)
        self.decoder = nn.Module()
        self.decoder.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        options = {"qkv_bias": qkv_bias, "init_values": 1e-6, "act_layer": QuickGELU, "qk_norm": qk_norm}
        blocks = [Block(width, heads, mlp_ratio, norm_layer=nn.LayerNorm, **options) for _ in range(depth)]
        self.decoder.blocks = nn.Sequential(*blocks)
        self.decoder.norm = nn.LayerNorm(width, eps=1e-5)
        self.decoder.head = nn.Linear(width, 24)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.eval()

    def forward(self, features):
        x = self.encoder.head(features)
        x[:, 0] = 0  # the decoder never sees the class token
        return self.decoder.norm(self.decoder.blocks(x + self.decoder.pos_embed))

    def save(self, run, heads):
        folder = run / "checkpoints" / "best"
        folder.mkdir(parents=True)
        state = self.state_dict()
        decoder = {k: v for k, v in state.items() if k.startswith(("decoder.", "encoder.head."))}
        encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
        save_backbone(folder / "backbone.safetensors", encoder, CLIP, decoder, heads)
        return run


STUDENTS = [
    {"width": 24, "depth": 2, "heads": 4, "head": "linear"},
    {"width": 12, "depth": 1, "heads": 2, "head": "linear"},
    {"width": 24, "depth": 1, "heads": 3, "head": "mlp", "mlp_ratio": 43 / 12},
    {"width": 12, "depth": 2, "heads": 4, "head": "mlp", "qk_norm": True, "qkv_bias": False},
    {"width": 24, "depth": 0, "heads": 4, "head": "linear"},
]


@pytest.mark.parametrize("options", STUDENTS, ids=str)
def test_the_projector_is_the_students_decoder_and_outlives_the_run(options, tmp_path):
    student = HandMadeStudent(**options)
    run = student.save(tmp_path / "run", options["heads"])
    model, processor = prismatic.build(str(run), "miniature", "pretrained-decoder")
    assert model.projector.head.weight.abs().max() == 0
    nn.init.normal_(model.projector.head.weight)

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = create_backbone(str(run)).eval()(images)
        torch.testing.assert_close(model.eval().vision_backbone(images), features)
        expected = nn.functional.linear(student(features), model.projector.head.weight)
        torch.testing.assert_close(model.get_image_features(images).pooler_output, expected, atol=1e-5, rtol=1e-5)

    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    shutil.rmtree(run)
    reloaded, _ = prismatic.load(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(reloaded.get_image_features(images).pooler_output, expected, atol=1e-5, rtol=1e-5)


def test_a_file_that_is_no_decoder_is_refused_before_the_llm_is_read(tmp_path):
    run = HandMadeStudent(**STUDENTS[0]).save(tmp_path / "run", 4)
    folder = run / "checkpoints" / "best"
    shutil.copy(folder / "backbone.safetensors", folder / "backbone.decoder.safetensors")
    with pytest.raises(ValueError, match="backbone.decoder.safetensors: not a MaskEmbed decoder: no decoder.pos_embed"):
        prismatic.build(str(run), "no/such-llm", "pretrained-decoder")


def test_a_decoder_of_another_image_size_is_refused(tmp_path):
    run = HandMadeStudent(**STUDENTS[0]).save(tmp_path / "run", 4)
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 17, 24\), expected \(1, 65, 24\)"):
        prismatic.build(str(run), "miniature", "pretrained-decoder", image_size=64)


def test_hidden_widths_survive_the_quotient():
    """4304 of 1152 is SO400M's, where the ratio is no round number."""
    for width, hidden in ((1152, 4304), (24, 86), (1024, 4096), (100, 29)):
        options = {"depth": 1, "width": width, "mlp_hidden": hidden}
        with torch.device("meta"):
            projector = build_projector(
                "pretrained-decoder", width, 8, num_tokens=4, num_heads=1, num_prefix_tokens=1, options=options
            )
        assert projector.blocks[0].mlp.fc1.out_features == hidden


@pytest.mark.parametrize("id", [id for id in list_backbones() if get_spec(id).aligned])
def test_activations_are_made_again_by_their_class(id):
    with torch.device("meta"):
        act = create_backbone(dataclasses.replace(get_spec(id), weights=None), pretrained=False).vit.blocks[0].mlp.act
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(type(act)()(x), act(x))
    assert isinstance(act, QuickGELU) == ("clip" in id.split("-")[0])


def test_the_shape_of_a_decoder_is_read_from_its_header(tmp_path):
    run = HandMadeStudent(**STUDENTS[1]).save(tmp_path / "run", 2)
    assert decoder_config(run / "checkpoints" / "best" / "backbone.decoder.safetensors") == {
        "depth": 1, "width": 12, "mlp_hidden": 48, "qk_norm": False, "qkv_bias": True, "in_hidden": None,
        "num_heads": 2,
    }  # fmt: skip
