"""Heads of other widths and depths, backbones with random weights, images of other sizes: trained and read back."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from small_probes import train_probes

from eval.probing.backbone import ProbedBackbone
from eval.probing.data import PatchExamples, find_root, get_dataset, list_pairs
from eval.probing.evaluate import evaluate, scores_of
from eval.probing.features import Split
from eval.probing.heads import make_head
from eval.probing.metrics import jsonable
from eval.probing.saved import ABOUT, WEIGHTS, load_probe
from vision_backbones import check_spec
from vision_backbones.files import write_json

WORLD = "miniature:12:5"
SMALL = f"--data_root {WORLD} --batch_size 4 --epochs 2"
E, C, HEADS, TOKENS, PATCHES = 24, 5, 4, 17, 16  # of a backbone that is only looked at
BACKBONE = SimpleNamespace(
    embed_dim=E, num_heads=HEADS, num_prefix_tokens=1, grid=(4, 4), spec=SimpleNamespace(id="some-vit")
)


def parameters_of(head, width, depth):
    """By formula: weights and biases of linear layers, scales and shifts of norms, gammas of LayerScale, positions."""
    if head == "mlp":
        return E * width + width + (depth - 1) * (width * width + width) + width * C + C
    positions = TOKENS if head == "transformer" else PATCHES
    projected = 0 if width == E else E * width + width
    block = 4 * width + 3 * width**2 + width**2 + width + 2 * width + 8 * width**2 + 5 * width
    return projected + positions * width + 4 * width + depth * block + width * C + C


@pytest.mark.parametrize("head", ["mlp", "transformer", "transformer-cls", "transformer-separate"])
@pytest.mark.parametrize(("width", "depth"), [(None, None), (8, None), (None, 3), (16, 1), (40, 4)])
def test_sizes_are_what_was_asked_for(head, width, depth):
    made = make_head(head, "union", BACKBONE, C, width=width, depth=depth)
    usual = (1024, 1) if head == "mlp" else (E, 2)
    expected = parameters_of(head, width or usual[0], depth or usual[1])
    assert sum(p.numel() for p in made.parameters()) == expected
    logits = made(torch.randn(2, {"mlp": PATCHES, "transformer-cls": 1}.get(head, TOKENS), E))
    assert logits.shape == (2, PATCHES, C)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("head", "sizes", "said"),
    [
        ("linear", {"width": 8}, "--head_width 8: the linear head is a single layer"),
        ("linear", {"depth": 2}, "--head_depth 2: the linear head is a single layer"),
        ("transformer", {"width": 30}, "a multiple of the 4 attention heads of some-vit, such as 28 or 32"),
        ("transformer-cls", {"width": 3}, "such as 4 or 8"),
    ],
)
def test_sizes_that_cannot_be(head, sizes, said):
    with pytest.raises(ValueError, match=said):
        make_head(head, "union", BACKBONE, C, **sizes)


CASES = {
    "narrow": "--head transformer --head_width 32 --head_depth 1 --image_size 64",
    "deep": "--head mlp --head_width 40 --head_depth 3 --pretrained false",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    for name, arguments in CASES.items():
        train_probes(root, name, f"{SMALL} {arguments}")
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_probe_that_is_read_back_scores_as_its_run_says(name, runs):
    saved = load_probe(runs / name)
    (row,) = json.loads((runs / name / "results.json").read_text())["probes"]
    dataset, backbone = get_dataset("miniature"), saved.probe.backbone
    assert (
        backbone.spec.image_size == (64 if name == "narrow" else 48) and saved.grid[0] * 8 == backbone.spec.image_size
    )
    pairs = list_pairs(dataset, find_root(dataset, WORLD), "val")
    split = Split(PatchExamples(dataset, pairs, backbone.spec, backbone.patch, ["union"]), 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    found = evaluate(saved.probe, split, [range(4), range(4, 5)], "union", Accelerator(cpu=True))
    assert jsonable(scores_of(found, "union")) == row["last"]["scores"]
    width = 40 if name == "deep" else 32
    assert width in {value.shape[0] for value in saved.probe.head.parameters()}


def test_random_weights_are_those_of_the_seed_and_are_kept(runs):
    folder = runs / "deep" / "miniature" / "union"
    kept = load_file(folder / WEIGHTS)
    set_seed(0)
    expected = ProbedBackbone(check_spec("miniature"), "suffix", pretrained=False).state_dict()
    for name, value in expected.items():
        assert torch.equal(kept[f"backbone.{name}"], value), name
    trained = ProbedBackbone(check_spec("miniature"), "suffix").state_dict()
    assert not torch.equal(trained["vits.0.pos_embed"], expected["vits.0.pos_embed"])
    content = json.loads((runs / "deep" / "results.json").read_text())
    assert content["pretrained"] is False and json.loads((folder / ABOUT).read_text())["pretrained"] is False


def test_probes_from_before_there_were_sizes(tmp_path):
    run = train_probes(tmp_path, "old", f"{SMALL} --max_steps 1")
    folder = run / "miniature" / "union"
    about = json.loads((folder / ABOUT).read_text())
    for name in ("head_width", "head_depth", "pretrained"):
        del about[name]
    write_json(folder / ABOUT, about)
    assert len(load_probe(run).probe.head.blocks) == 2
    write_json(folder / ABOUT, about | {"head_depth": "2"})
    with pytest.raises(ValueError, match="is damaged: head_depth is of another type"):
        load_probe(run)
    write_json(folder / ABOUT, about | {"head_depth": 3})
    with pytest.raises(ValueError, match="belongs to a different probe"):
        load_probe(run)
