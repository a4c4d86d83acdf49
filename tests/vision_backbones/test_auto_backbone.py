"""Vision backbones under heads of transformers: maps that are our features, and heads that train on them."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from golden_cases import ROOT
from transformers import (
    AutoBackbone,
    AutoConfig,
    DetrConfig,
    DetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from prismatic import PrismaticBackbone, PrismaticBackboneConfig
from vision_backbones import BackboneSpec, create_backbone, get_spec

PIXELS = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def tokens(map):
    return map.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("id", "stage"), [("miniature-aligned", "stage8"), ("miniature", "stage7")])
@torch.no_grad()
def test_the_map_is_the_features(id, stage):
    ours, backbone = create_backbone(id).eval(), PrismaticBackbone.of(id)
    assert backbone.out_features == [stage] and backbone.channels == [96]
    (map,) = backbone(PIXELS).feature_maps
    assert map.shape == (2, 96, 6, 6) and torch.equal(tokens(map), ours(PIXELS)[:, ours.num_prefix_tokens :])


@torch.no_grad()
def test_stages_are_blocks():
    vit = create_backbone("miniature-aligned").eval().vit
    expected = vit.forward_intermediates(PIXELS, intermediates_only=True)
    backbone = PrismaticBackbone.of("miniature-aligned", out_indices=(2, 5), apply_layernorm=False)
    assert backbone.out_features == ["stage3", "stage6"]
    found = backbone(PIXELS, output_hidden_states=True)
    assert all(torch.equal(*pair) for pair in zip(found.feature_maps, (expected[2], expected[5]), strict=True))
    assert all(torch.equal(*pair) for pair in zip(found.hidden_states, expected, strict=True))
    normed = PrismaticBackbone.of("miniature-aligned", out_features=["stage3"])(PIXELS).feature_maps[0]
    assert torch.equal(tokens(normed), vit.norm(tokens(expected[2])))
    assert torch.equal(backbone(PIXELS, return_dict=False)[0][1], expected[5])


@torch.no_grad()
def test_saved_and_loaded(tmp_path, monkeypatch):
    backbone = PrismaticBackbone.of("miniature-aligned", out_indices=[1, 7])
    backbone.save_pretrained(tmp_path)
    expected = backbone(PIXELS).feature_maps
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is PrismaticBackboneConfig and type(AutoBackbone.from_config(config)) is PrismaticBackbone
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda *_: True)  # AutoBackbone asks the hub alone
    for load in (PrismaticBackbone.from_pretrained, AutoBackbone.from_pretrained):
        loaded = load(tmp_path)
        assert loaded.out_features == ["stage2", "stage8"] and not loaded.training
        assert all(torch.equal(*pair) for pair in zip(loaded(PIXELS).feature_maps, expected, strict=True))
        assert load(tmp_path, out_features=["stage4"]).out_indices == [3]
        assert torch.equal(load(tmp_path, out_indices=[7])(PIXELS).feature_maps[0], expected[1])

    config.vision_config["arch_kwargs"]["depth"] = config.num_hidden_layers = 9
    with pytest.raises(ValueError, match="does not hold this backbone: missing: vits.0.blocks.8"):
        PrismaticBackbone.from_pretrained(tmp_path, config=PrismaticBackboneConfig(**config.to_dict()))


@torch.no_grad()
def test_images_of_other_sizes():
    backbone = PrismaticBackbone.of("miniature-aligned")
    assert backbone(torch.zeros(1, 3, 71, 100)).feature_maps[0].shape == (1, 96, 8, 12)
    bordered = torch.cat([PIXELS, torch.rand(2, 3, 7, 48)], dim=2)
    assert torch.equal(backbone(bordered).feature_maps[0], backbone(PIXELS).feature_maps[0])
    larger = create_backbone("miniature-aligned", image_size=96).eval()
    pixels = torch.rand(1, 3, 96, 96)
    wide = PrismaticBackbone.of("miniature-aligned", image_size=96)
    assert torch.equal(tokens(wide(pixels).feature_maps[0]), larger(pixels)[:, 1:])
    # At loading, embeddings are interpolated to the precision of the file: half.
    assert torch.allclose(tokens(backbone(pixels).feature_maps[0]), larger(pixels)[:, 1:], atol=2e-3)


@torch.no_grad()
def test_a_border_that_no_patch_sees():
    """As of SO400M, where 27 patches of 14 cover 378 of 384 pixels."""
    spec = dataclasses.replace(get_spec("miniature"), image_size=52, allow_border=True, weights=None)
    torch.manual_seed(0)
    backbone, ours = PrismaticBackbone.of(spec, pretrained=False), create_backbone(spec, pretrained=False).eval()
    ours.load_state_dict({n: v for n, v in _as_ours(backbone).items() if n in ours.state_dict()})
    pixels = torch.rand(1, 3, 52, 52)
    assert torch.equal(tokens(backbone(pixels).feature_maps[0]), ours(pixels))


def _as_ours(backbone):
    return {name.replace("vits.0.", "vit."): value for name, value in backbone.state_dict().items()}


@torch.no_grad()
def test_fused_backbones():
    parts = (get_spec("miniature"), dataclasses.replace(get_spec("miniature"), id="other", weights="miniature-aligned"))
    fused = BackboneSpec("two", parts=parts, image_size=48)
    pixels = torch.cat([PIXELS, PIXELS.flip(0)], dim=1)
    backbone = PrismaticBackbone.of(fused)
    (map,) = backbone(pixels).feature_maps
    assert backbone.channels == [192] and torch.equal(tokens(map), create_backbone(fused).eval()(pixels))
    with pytest.raises(
        ValueError, match="no stages in common, dinov2-vit-l has 24, siglip-vit-so400m has 27: take one"
    ):
        PrismaticBackbone.of("dinosiglip-vit-so-224px", pretrained=False)


def test_errors_and_a_vit_of_one_size():
    backbone = PrismaticBackbone.of("miniature-aligned")
    with pytest.raises(ValueError, match=r"shape \[2, 1, 48, 48\], expected \[B, 3, H, W\]"):
        backbone(PIXELS[:, :1])
    with pytest.raises(ValueError, match="7 x 48 pixels, expected at least one patch of 8"):
        backbone(PIXELS[:, :, :7])
    with pytest.raises(ValueError, match="no attentions"):
        backbone(PIXELS, output_attentions=True)
    with pytest.raises(ValueError, match="did you mean miniature-aligned"):
        PrismaticBackbone.of("miniature-alinged")
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        PrismaticBackbone.of("miniature", out_features=["stage9"])
    with pytest.raises(ValueError, match="is no plain ViT.*use transformers' TimmBackbone"):
        PrismaticBackbone.of("convnext-dinov3-t", pretrained=False)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    beit = BackboneSpec("beit", arch="beit_base_patch16_224", image_size=32, arch_kwargs=small)
    beit = PrismaticBackbone.of(beit, pretrained=False)
    assert beit(PIXELS[..., :32, :32]).feature_maps[0].shape == (2, 32, 4, 4)
    with pytest.raises(ValueError, match="48 x 48 pixels, but Beit takes one size only"):
        beit(PIXELS)


def segmenter(backbone):
    torch.manual_seed(0)
    config = UperNetConfig(
        backbone_config=backbone.config, num_labels=3, hidden_size=16, pool_scales=[1, 2],
        auxiliary_in_channels=96, auxiliary_channels=8,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    return model


def test_a_segmentation_head_learns(tmp_path):
    """Squares of two colours on black; one step lowers the loss, and the whole model is saved and loaded."""
    backbone = PrismaticBackbone.of("miniature-aligned", out_indices=[1, 3, 5, 7])
    model = segmenter(backbone).train()
    labels = torch.zeros(4, 48, 48, dtype=torch.long)
    for number in range(4):
        labels[number, 8 * number : 8 * number + 24, 16:40] = 1 + number % 2
    pixels = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float() * 2 - 1
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(2):
        loss = model(pixels, labels=labels).loss
        losses.append(loss.item())
        loss.backward()
        assert model.backbone.vits[0].blocks[0].attn.qkv.weight.grad.abs().max() > 0
        optimizer.step(), optimizer.zero_grad()
    assert losses[1] < losses[0] - 0.01

    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path)
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_a_detection_head_takes_it():
    backbone = PrismaticBackbone.of("miniature-aligned")
    sizes = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 16)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    config = DetrConfig(
        backbone_config=backbone.config, use_timm_backbone=False, num_queries=4, encoder_layers=1, decoder_layers=1,
        num_labels=3, **sizes,
    )  # fmt: skip
    model = DetrForObjectDetection(config)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    model(PIXELS, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_the_examples_of_the_docs_run(tmp_path):
    page = (ROOT / "docs" / "backbone-clients.md").read_text()
    commands = [c for c in re.findall(r"^prismatic .*", page, re.M) if "--help" not in c]
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    for command in [*commands, f"{sys.executable} -c {shlex.quote(code)}"]:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "torch.Size([1, 96, 6, 6])" in done.stdout
    losses = [float(line.split()[1]) for line in re.findall(r"^\d [\d.]+$", done.stdout, re.M)]
    assert len(losses) == 10 and losses[-1] < losses[0]
