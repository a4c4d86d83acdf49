import dataclasses

import pytest
import timm
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden, unsaid_heads

from vision_backbones import BackboneSpec, create_backbone, get_spec
from vision_backbones.soft_cap import SoftCapAttention
from vision_backbones.vit import build_vit

A1, B1, B5 = "A_locality_alignment/A1_svit", "B_prismatic/B1_projectors", "B_prismatic/B5_vlm"
SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}


def strip(tensors: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def last_block(weights: dict) -> int:
    return max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))


def small(id: str = "small", arch: str = "vit_tiny_patch16_224", image_size: int = 32, **fields) -> BackboneSpec:
    return BackboneSpec(id, arch=arch, image_size=image_size, arch_kwargs=dict(SMALL), **fields)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{A1}/cases.json"))
def test_soft_capped_vits_match_the_reference(name):
    case, golden = load_json(f"{A1}/cases.json")[name], load_tensors(f"{A1}/{name}.safetensors")
    # Activation and norm are stored as reprs; the CLIP architecture has the same ones by name.
    arch = "vit_base_patch16_clip_quickgelu_224" if case["act"] == "QuickGELU" else "vit_base_patch16_224"
    ctor = {key: value for key, value in case["ctor"].items() if key not in ("norm_layer", "act_layer")}
    size = ctor.pop("img_size")
    spec = BackboneSpec(name, arch=arch, image_size=size, arch_kwargs=ctor, soft_cap=case["max_attn_val"], aligned=True)
    whole = build_vit(spec)
    weights = strip(golden, "param.")
    assert whole.load_state_dict(weights)
    torch.testing.assert_close(whole(golden["input"]), golden["output.forward"], atol=2e-5, rtol=1e-5)

    backbone = create_backbone(spec, pretrained=False)
    backbone.vit.load_state_dict({key: weights[key] for key in backbone.vit.state_dict()})
    pixels = golden["input"].requires_grad_()
    features = backbone(pixels)
    assert list(features.shape) == case["out_shape"]
    assert backbone.num_prefix_tokens == case["num_prefix_tokens"]
    torch.testing.assert_close(features, golden["output.forward_features"], atol=2e-5, rtol=1e-5)
    (features * golden["grad_probe"]).sum().backward()
    got = {"input": pixels.grad, "blocks.0.attn.qkv.weight": backbone.vit.blocks[0].attn.qkv.weight.grad}
    for key, gradient in got.items():
        expected = golden[f"grad.{key}"]
        torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item() + 1e-7, rtol=1e-5)


@requires_golden
@pytest.mark.parametrize("name", case_names(f"{B5}/cases.json"))
def test_patch_features_match_the_reference(name):
    case, golden = load_json(f"{B5}/cases.json")[name], load_tensors(f"{B5}/{name}.safetensors")
    spec = dataclasses.replace(
        get_spec(case["vision_backbone_id"]), arch_kwargs=case["vit"], image_size=case["vit"]["img_size"]
    )
    backbone = create_backbone(spec, pretrained=False, image_resize_strategy=case["image_resize_strategy"])
    backbone.vit.load_state_dict(strip(golden, "vision_backbone.featurizer."))
    features = backbone(golden["batch.pixel_values"][golden["batch.multimodal_indices"]])
    torch.testing.assert_close(features, golden["patch_features"], atol=2e-5, rtol=1e-5)


@requires_golden
@pytest.mark.parametrize("name", [n for n in case_names(f"{B1}/cases.json") if n.startswith("truncated")])
@pytest.mark.parametrize("aligned", [False, True])
def test_truncated_features_match_the_reference(name, aligned):
    golden = load_tensors(f"{B1}/{name}.safetensors")
    weights = strip(golden, "vit.")
    arch = "vit_base_patch16_224" if "cls_token" in weights else "vit_base_patch16_siglip_224"
    (width, _, patch, _), depth = weights["patch_embed.proj.weight"].shape, 1 + last_block(weights)
    size = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": unsaid_heads()}
    spec = BackboneSpec(name, arch=arch, image_size=golden["image"].shape[-1], arch_kwargs=size, aligned=aligned)
    backbone = create_backbone(spec, pretrained=False, tail_blocks=2)
    blocks, norm = backbone.pop_tail()
    backbone.vit.load_state_dict({key: weights[key] for key in backbone.vit.state_dict()})
    tail = {tuple(k.split(".", 1)): v for k, v in strip(weights, "blocks.").items()}
    tail = {f"{int(block) - (depth - 2)}.{name}": v for (block, name), v in tail.items() if int(block) >= depth - 2}
    blocks.load_state_dict(tail)
    norm.load_state_dict(strip(weights, "norm."))
    features = backbone(golden["image"])
    torch.testing.assert_close(features, golden["truncated_forward_features"], atol=2e-5, rtol=1e-5)
    for block in blocks:
        features = block(features)
    torch.testing.assert_close(norm(features), golden["full_forward_features"], atol=2e-5, rtol=1e-5)


ARCHS = [
    "vit_tiny_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_rope_224",
]


@pytest.mark.parametrize("arch", ARCHS)
def test_features_are_the_blocks_they_claim_to_be(arch):
    """Against timm's own model, its blocks watched by hooks."""
    whole = build_vit(small(arch=arch)).eval()
    seen = {}
    for index, block in enumerate(whole.blocks):
        block.register_forward_hook(lambda _, __, output, index=index: seen.__setitem__(index, output))
    pixels = torch.randn(2, 3, 32, 32)
    final = whole.forward_features(pixels)
    prefix = whole.num_prefix_tokens
    expected = {
        ("unaligned", 0): seen[1][:, prefix:],
        ("aligned", 0): final,
        ("unaligned", 1): seen[1],
        ("aligned", 1): seen[1],
        ("unaligned", 2): seen[0],
        ("aligned", 2): seen[0],
    }
    for (kind, tail_blocks), features in expected.items():
        spec = small(arch=arch, aligned=kind == "aligned")
        backbone = create_backbone(spec, pretrained=False, tail_blocks=tail_blocks).eval()
        backbone.vit.load_state_dict(whole.state_dict(), strict=False)
        assert set(backbone.vit.state_dict()) <= set(whole.state_dict())
        torch.testing.assert_close(backbone(pixels), features)
        assert features.shape[1] == backbone.num_tokens


def test_soft_cap_bounds_the_logits():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **SMALL)
    capped = {cap: build_vit(small(soft_cap=cap)) for cap in (1e-3, 1e6)}
    pixels = torch.randn(1, 3, 32, 32)
    for vit in capped.values():
        vit.load_state_dict(plain.state_dict())
        assert all(isinstance(block.attn, SoftCapAttention) for block in vit.blocks)
    torch.testing.assert_close(capped[1e6](pixels), plain(pixels), atol=1e-5, rtol=1e-4)  # a cap never reached
    attention, tokens = capped[1e-3].blocks[0].attn, torch.randn(1, 17, 32)
    value = attention.qkv(tokens)[..., 64:].mean(1)  # a cap near zero: every token sees the mean of all
    torch.testing.assert_close(attention(tokens)[0, 3], attention.proj(value)[0], atol=1e-3, rtol=1e-2)
    with pytest.raises(ValueError, match="no attention mask"):
        attention(tokens, is_causal=True)


def test_unused_parameters_are_gone():
    whole = build_vit(small(arch="vit_base_patch16_siglip_224"))
    unaligned = create_backbone(small(arch="vit_base_patch16_siglip_224"), pretrained=False)
    dropped = {name for name, _ in whole.named_parameters()} - {name for name, _ in unaligned.vit.named_parameters()}
    assert {name.split(".")[0] for name in dropped} == {"blocks", "norm", "attn_pool"}
    assert {name.split(".")[1] for name in dropped if name.startswith("blocks")} == {"2"}
    assert all(name.startswith("vit.") for name in unaligned.state_dict())
    loss = unaligned(torch.randn(1, 3, 32, 32)).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in unaligned.parameters())


def test_the_tail_is_handed_over_once():
    backbone = create_backbone(small(), pretrained=False, tail_blocks=2)
    blocks, norm = backbone.pop_tail()
    assert len(blocks) == 2 and isinstance(norm, torch.nn.LayerNorm)
    assert len(backbone.vit.blocks) == 1 and all(name.startswith("vit.") for name in backbone.state_dict())
    with pytest.raises(ValueError, match="has no tail"):
        backbone.pop_tail()
    with pytest.raises(ValueError, match="has no tail"):
        create_backbone(small(), pretrained=False).pop_tail()


def test_fused_features_stand_side_by_side():
    parts = (small("a"), small("b", arch="vit_base_patch16_siglip_224"))
    fused = create_backbone(BackboneSpec("ab", parts=parts, image_size=48), pretrained=False).eval()
    pixels = torch.randn(2, 6, 48, 48)
    features = fused(pixels)
    assert features.shape == (2, 36, 64) and fused.grid == (6, 6) and fused.embed_dim == 64
    assert torch.equal(features[..., :32], fused.parts[0](pixels[:, :3]))
    assert torch.equal(features[..., 32:], fused.parts[1](pixels[:, 3:]))
    assert {name.split(".")[2] for name in fused.state_dict()} == {"vit"}
    assert fused.spec.parts[0].image_size == 48


def test_fused_parts_must_share_the_grid():
    odd = dataclasses.replace(small("odd"), arch_kwargs={**SMALL, "patch_size": 16})
    with pytest.raises(ValueError, match="one patch grid, got a 4x4, odd 2x2"):
        create_backbone(BackboneSpec("x", parts=(small("a"), odd), image_size=32), pretrained=False)


@pytest.mark.parametrize(("aligned", "prefix"), [((False, True), 0), ((True, True), 1), ((False, False), 0)])
def test_fused_prefix_tokens_are_kept_where_all_parts_have_them(aligned, prefix):
    parts = tuple(small(f"part{number}", aligned=kept) for number, kept in enumerate(aligned))
    fused = create_backbone(BackboneSpec("x", parts=parts, image_size=32), pretrained=False).eval()
    pixels = torch.randn(2, 6, 32, 32)
    features = fused(pixels)
    assert features.shape == (2, 16 + prefix, 64) and fused.num_prefix_tokens == prefix
    for part, view, own in zip(fused.parts, pixels.split(3, dim=1), features.split(32, dim=-1), strict=True):
        assert torch.equal(own[:, -16:], part(view)[:, -16:])


def test_pixels_of_another_shape_are_refused():
    backbone = create_backbone(small(), pretrained=False)
    with pytest.raises(ValueError, match=r"shape \[1, 3, 40, 40\], expected \[B, 3, 32, 32\]"):
        backbone(torch.zeros(1, 3, 40, 40))


def test_image_size_overrides_grid_spec_and_transform():
    backbone = create_backbone("miniature", pretrained=False, image_size=64)
    assert (backbone.grid, backbone.image_size, backbone.spec.image_size) == ((8, 8), 64, 64)
    assert backbone.transform.transforms[1].size == (64, 64)
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 64, 96)


def test_low_precision():
    backbone = create_backbone(small(soft_cap=30.0, aligned=True), pretrained=False).to(torch.bfloat16)
    assert backbone(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_weights_that_timm_does_not_get_name_the_way_without(tmp_path):
    """In Python and on the command line."""
    spec = small()
    absent = {"pretrained_cfg_overlay": {"file": str(tmp_path / "absent.safetensors")}}
    with pytest.raises(ValueError, match="FileNotFoundError.*pretrained=False, or --pretrained false"):
        create_backbone(dataclasses.replace(spec, arch_kwargs=SMALL | absent))


@pytest.mark.parametrize("arch", ["vit_small_patch16_18x2_224", "vit_base_patch16_xp_224"])
def test_heads_of_parallel_layers(arch):
    kwargs = {"embed_dim": 32, "depth": 3, "num_heads": 4}
    backbone = create_backbone(BackboneSpec("x", arch=arch, image_size=32, arch_kwargs=kwargs), pretrained=False)
    assert (backbone.num_heads, backbone.act_layer) == (4, torch.nn.GELU)
