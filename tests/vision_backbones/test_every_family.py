"""Backbones of every family in use: described, inside a VLM, probed, exported to timm, and each read back as it was."""

import copy
import dataclasses
import json
import sys

import pytest
import timm
import torch
from small_families import MAPS, VITS
from small_probes import train_probes

import prismatic
import vision_backbones.registry as registry
from eval.probing.backbone import ProbedBackbone
from eval.probing.features import Probe
from eval.probing.heads import make_head, tokens_for
from eval.probing.saved import OUTCOME, load_probe
from prismatic import PrismaticBackbone, PrismaticForConditionalGeneration
from vision_backbones import create_backbone, get_spec, register
from vision_backbones.__main__ import main
from vision_backbones.backbone_files import write_tensors
from vision_backbones.timm_folder import export_timm
from vision_backbones.vit import build_vit, load_network

EVERY = VITS | MAPS
TABLES = (  # in buffers: rotary ones, others of relative positions
    "dinov3", "pe-core", "pe-spatial", "eva02", "rope-vit", "rope-mixed", "beit", "beitv2", "swin", "swinv2",
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """All of them, as long as a test runs."""
    torch.manual_seed(0)
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    for spec in EVERY.values():
        register(spec)


def pixels_of(spec, images=2):
    return torch.randn(images, 3, spec.image_size, spec.image_size)


def unsaved(module):
    """Buffers that no checkpoint holds, by name."""
    saved = set(module.state_dict())
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def timms(spec):
    """The same of a newly built timm model, by the names that a backbone of ours has for them."""
    name = "vit" if spec.family in VITS else "network"
    return {f"{name}.{key}": value for key, value in unsaved(build_vit(spec)).items()}


@pytest.mark.parametrize("family", EVERY)
def test_described_as_it_is(family, monkeypatch, capsys):
    spec = EVERY[family]
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "describe", spec.id])
    main()
    with torch.no_grad():
        _, tokens, width = create_backbone(spec, pretrained=False)(pixels_of(spec)).shape
    side = int(tokens**0.5)
    assert f"[B, {tokens}, {width}], 0 prefix tokens, patches {side} x {side}" in capsys.readouterr().out


@pytest.mark.parametrize("family", EVERY)
def test_a_vlm_learns_and_is_read_back(family, tmp_path):
    """A step lowers the loss; the saved model computes the same, and has the buffers of a newly built timm model."""
    spec = EVERY[family]
    model, processor = prismatic.build(spec.id, "miniature", "gelu-mlp", pretrained=False)
    ids = processor.tokenizer("In: <image> What?\nOut: red", return_tensors="pt").input_ids
    place = (ids[0] == model.config.image_token_id).nonzero().item()
    images = torch.full((1, model.vision_backbone.num_tokens), model.config.image_token_id)
    ids = torch.cat([ids[:, :place], images, ids[:, place + 1 :]], dim=1)
    labels = ids.masked_fill(ids == model.config.image_token_id, -100)
    pixels, optimizer, losses = pixels_of(spec, 1), torch.optim.SGD(model.parameters(), lr=0.02), []
    for _ in range(2):
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
    assert losses[1] < losses[0]

    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        read = PrismaticForConditionalGeneration.from_pretrained(tmp_path)
        assert read.vision_backbone.spec.to_dict() == spec.to_dict()
        inputs = {"input_ids": ids, "pixel_values": pixels}
        assert torch.equal(read(**inputs).logits, model(**inputs).logits)
        expected = timms(spec)
        found = unsaved(read.vision_backbone)
        assert bool(found) == (family in TABLES)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("family", TABLES)
def test_tables_of_low_precision_are_timms(family, tmp_path):
    """Read in bfloat16, features are those of timm's model cast to it; back in float32 the tables are exact again."""
    spec = EVERY[family]
    model, _ = prismatic.build(spec.id, "miniature", "linear", pretrained=False)
    model.eval().save_pretrained(tmp_path)
    read = PrismaticForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = copy.deepcopy(model.vision_backbone).bfloat16()
    whole = build_vit(spec).eval()
    weights = {name.partition(".")[2]: value for name, value in model.vision_backbone.state_dict().items()}
    whole.load_state_dict(weights, strict=False)
    whole.bfloat16()
    pixels = pixels_of(spec, 1).bfloat16()
    with torch.no_grad():
        features = read.vision_backbone(pixels)
        assert torch.equal(features, cast(pixels))
        (maps,) = whole.forward_intermediates(
            pixels, indices=[len(whole.feature_info) - (2 if family in VITS else 1)], intermediates_only=True
        )
        assert torch.equal(features, maps.flatten(2).transpose(1, 2))
    again, expected = unsaved(read.vision_backbone.float()), timms(spec)
    assert again and all(torch.equal(value, expected[name]) for name, value in again.items())


@pytest.mark.parametrize("family", TABLES)
def test_tables_are_right_wherever_a_backbone_comes_from(family, tmp_path):
    """From the meta device, a copy, another image size, and as a backbone of transformers."""
    spec = EVERY[family]
    expected = timms(spec)
    backbone = create_backbone(spec, pretrained=False).eval()
    with torch.device("meta"):
        emptied = create_backbone(spec, pretrained=False).eval()
    emptied.to_empty(device="cpu")
    emptied.load_state_dict(backbone.state_dict())
    for made in (emptied, copy.deepcopy(backbone)):
        found = unsaved(made)
        assert found and all(torch.equal(value, expected[name]) for name, value in found.items())
    pixels = pixels_of(spec)
    with torch.no_grad():
        assert torch.equal(emptied(pixels), backbone(pixels))
    found = unsaved(create_backbone(spec, pretrained=False, image_size=2 * spec.image_size))
    wanted = timms(dataclasses.replace(spec, image_size=2 * spec.image_size))
    assert found and all(torch.equal(value, wanted[name]) for name, value in found.items())
    if family in VITS:
        whole = PrismaticBackbone.of(spec, pretrained=False)
        whole.save_pretrained(tmp_path)
        read = unsaved(PrismaticBackbone.from_pretrained(tmp_path, dtype=torch.bfloat16).float())
        assert all(torch.equal(value, read[name]) for name, value in unsaved(whole).items())


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize(("head", "labels"), [("transformer", "union"), ("linear", "global-union")])
def test_a_probe_learns(family, head, labels):
    """Which patches are bright, resp. whether the image is."""
    spec = EVERY[family]
    backbone = ProbedBackbone(spec, tokens_for(head, labels), pretrained=False).eval()
    probe = Probe(backbone, make_head(head, labels, backbone, 2), finetune=False, dtype=torch.float32).train()
    pixels = pixels_of(spec, 4)
    pixels[:2] += 1
    answers = 1 if labels == "global-union" else backbone.grid[0] * backbone.grid[1]
    targets = torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None, None].expand(4, answers, 2)
    optimizer, losses = torch.optim.SGD(probe.head.parameters(), lr=1e-2), []
    for _ in range(3):
        logits = probe({"pixel_values": pixels})
        assert logits.shape == (4, answers, 2)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        losses.append(loss.item())
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", EVERY)
def test_timm_reads_an_export(family, tmp_path):
    """timm alone computes the features that the card says, and the folder is a backbone of ours as well."""
    network = load_network(EVERY[family], pretrained=False)
    write_tensors(tmp_path / "own.safetensors", network.state_dict(), {})
    spec = dataclasses.replace(EVERY[family], weights=str(tmp_path / "own.safetensors"))
    export_timm(spec, tmp_path / "out")
    line = next(x for x in (tmp_path / "out" / "README.md").read_text().splitlines() if x.startswith("maps ="))
    index = int(line.partition("indices=[")[2].partition("]")[0])
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    backbone, pixels = create_backbone(spec).eval(), pixels_of(spec)
    with torch.no_grad():
        (maps,) = model.forward_intermediates(pixels, indices=[index], norm=False, intermediates_only=True)
        assert torch.equal(maps.flatten(2).transpose(1, 2), backbone(pixels))
        again = create_backbone(get_spec(str(tmp_path / "out"))).eval()
        assert torch.equal(again(pixels), backbone(pixels))


@pytest.mark.slow
def test_the_probe_recipe_takes_maps_and_joined_backbones(tmp_path):
    """A network with weights of its own and a pair that nobody registered, by their names, as the command line has."""
    write_tensors(tmp_path / "own.safetensors", load_network(MAPS["swin"], pretrained=False).state_dict(), {})
    register(dataclasses.replace(MAPS["swin"], id="own", weights=str(tmp_path / "own.safetensors")))
    names = ["own", "miniature-aligned+miniature"]
    run = train_probes(tmp_path, "run", f"--backbone [{','.join(names)}] --max_steps 2 --batch_size 16 --head mlp")
    outcomes = [json.loads((run / name / "union" / OUTCOME).read_text()) for name in names]
    assert [outcome["backbone"] for outcome in outcomes] == names
    saved = load_probe(run / names[0] / "union")
    assert saved.grid == (2, 2) and saved.patch == 32
