import dataclasses

import pytest
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden

from vision_backbones import BackboneSpec, get_spec, resolve_spec
from vision_backbones.classifier import HEADS, build_classifier, layer_decay_groups
from vision_backbones.soft_cap import SoftCapAttention

A6 = "A_locality_alignment/A6_mim_finetune"
FINETUNE = [name for name in case_names(f"{A6}/cases.json") if name.startswith("finetune_")]
SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
ARCHS = ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2"]


def small(arch: str = ARCHS[0], **fields) -> BackboneSpec:
    return BackboneSpec("small", arch=arch, image_size=32, arch_kwargs=SMALL, **fields)


@requires_golden
@pytest.mark.parametrize("name", FINETUNE)
def test_heads_match_the_reference(name):
    ctor, golden = load_json(f"{A6}/cases.json")[name]["ctor"], load_tensors(f"{A6}/{name}.safetensors")
    sizes = {key: int(ctor[key]) for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    arch = ARCHS[0] if ctor["class_token"] == "True" else ARCHS[1]
    spec = BackboneSpec(name, arch=arch, image_size=int(ctor["img_size"]), arch_kwargs=sizes, soft_cap=30.0)
    vit = build_classifier(spec, name.split("_")[1], int(ctor["num_classes"]), pretrained=False).eval()
    vit.load_state_dict({k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")})
    features = vit.forward_features(golden["input"])
    torch.testing.assert_close(features, golden["forward_features"], atol=2e-5, rtol=1e-5)
    if "pooled" in golden:
        torch.testing.assert_close(vit.pool(features), golden["pooled"], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(vit(golden["input"]), golden["logits"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_every_parameter(arch, head):
    vit = build_classifier(small(arch, soft_cap=30.0, aligned=True), head, 5, pretrained=False)
    assert all(isinstance(block.attn, SoftCapAttention) for block in vit.blocks)
    logits = vit(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 4])).backward()
    assert [name for name, p in vit.named_parameters() if p.grad is None] == []


def test_linear_averages_patches_and_attention_sees_prefix_tokens():
    tokens = torch.randn(2, 1 + 16, 32)
    linear = build_classifier(small(), "linear", 5, pretrained=False)
    torch.testing.assert_close(linear.forward_head(tokens), linear.head(tokens[:, 1:].mean(1)))
    attention = build_classifier(small(), "attention", 5, pretrained=False)
    changed = torch.cat([tokens[:, :1] + 1, tokens[:, 1:]], dim=1)
    assert not torch.allclose(attention.forward_head(tokens), attention.forward_head(changed))


def test_pretrained_weights_are_loaded():
    spec = resolve_spec("miniature")
    vit = build_classifier(spec, "linear", 3, pretrained=True)
    other = build_classifier(spec, "linear", 3, pretrained=True)
    assert torch.equal(vit.pos_embed, other.pos_embed) and not torch.equal(vit.head.weight, other.head.weight)


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown classifier head 'atention': did you mean attention"):
        build_classifier(small(), "atention", 5, pretrained=False)
    with pytest.raises(ValueError, match="num_classes is 0"):
        build_classifier(small(), "linear", 0, pretrained=False)
    with pytest.raises(ValueError, match="is fused"):
        build_classifier(get_spec("dinoclip-vit-l-336px"), "linear", 5, pretrained=False)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", ARCHS)
def test_layer_decay_follows_the_formula(arch, head):
    depth, decay = SMALL["depth"], 0.6
    vit = build_classifier(small(arch), head, 5, pretrained=False)
    groups = layer_decay_groups(vit, 0.05, decay)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in groups) == len(list(vit.parameters()))
    for name, parameter in vit.named_parameters():
        if name.startswith(("head.", "attn_pool.")):
            layer = depth + 1
        elif name.startswith("norm."):
            layer = depth  # timm puts the final norm into the last block's group
        else:
            layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        scale, weight_decay = found[id(parameter)]
        assert scale == pytest.approx(decay ** (depth + 1 - layer)), name
        undecayed = parameter.ndim == 1 or name in ("pos_embed", "cls_token", "reg_token")
        assert weight_decay == (0.0 if undecayed else 0.05), name


def test_unaligned_specs_keep_plain_attention():
    spec = dataclasses.replace(small(), soft_cap=None)
    vit = build_classifier(spec, "linear", 5, pretrained=False)
    assert not any(isinstance(m, SoftCapAttention) for m in vit.modules())
    assert isinstance(vit.norm, torch.nn.LayerNorm) and len(vit.blocks) == SMALL["depth"]
