"""ViTs of every family that timm has, in small: features, soft cap, alignment, and a way to disk and back."""

import dataclasses
import math

import pytest
import timm
import torch
from small_families import VITS
from timm.layers import apply_rot_embed_cat
from timm.models import beit, eva

from vision_backbones import BackboneSpec, check_spec, create_backbone
from vision_backbones.backbone_files import save_backbone
from vision_backbones.maskembed.pairing import check_pair
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.soft_cap_others import create_capped
from vision_backbones.vit import build_vit, load_vit

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4}
ALIGNED = {family: spec.arch for family, spec in VITS.items()}  # what is aligned with a soft cap
HYBRIDS = {"hybrid": "vit_base_r50_s16_224", "vitamin": "vitamin_small_224"}


def small(arch, patches=3, **fields):
    with torch.device("meta"):
        patch = timm.create_model(arch, num_classes=0).patch_embed.feat_ratio()
    return check_spec(
        BackboneSpec(f"small-{arch}", arch=arch, image_size=patches * patch, arch_kwargs=dict(SMALL), **fields)
    )


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("family", ALIGNED)
def test_features_are_those_of_timm(family):
    """Patches of the last block but one, without norm, by the blocks themselves."""
    spec = small(ALIGNED[family])
    backbone = create_backbone(spec, pretrained=False).eval()
    assert backbone.num_tokens == 9 and backbone.embed_dim == 48
    whole, seen = build_vit(spec).eval(), []
    whole.load_state_dict(backbone.vit.state_dict(), strict=False)
    whole.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.randn(2, 3, spec.image_size, spec.image_size)
    with torch.no_grad():
        whole.forward_features(pixels)
        torch.testing.assert_close(backbone(pixels), seen[0][:, whole.num_prefix_tokens :])


@pytest.mark.parametrize("family", ALIGNED)
def test_a_large_cap_changes_nothing_and_a_small_one_does(family):
    spec = small(ALIGNED[family])
    pixels, plain = torch.randn(1, 3, spec.image_size, spec.image_size), build_vit(spec).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = plain.forward_features(pixels)
    for cap, same in ((1e5, True), (0.1, False)):
        capped = build_vit(dataclasses.replace(spec, soft_cap=cap)).eval()
        capped.load_state_dict(plain.state_dict())
        assert torch.allclose(capped.forward_features(pixels), expected, atol=1e-3) == same


def test_the_cap_of_rotary_attention_is_its_formula():
    layer = eva.EvaAttention(32, num_heads=4, num_prefix_tokens=1, scale_norm=False)
    torch.nn.init.normal_(layer.qkv.weight, std=0.5), torch.nn.init.normal_(layer.q_bias)
    capped = create_capped(lambda: torch.nn.Sequential(layer), "eva02_tiny_patch14_224", 2.0)[0]
    x, rope = torch.randn(2, 10, 32, requires_grad=True), torch.randn(9, 16)
    bias = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
    q, k, v = (x @ layer.qkv.weight.T + bias).view(2, 10, 3, 4, 8).permute(2, 0, 3, 1, 4)
    q, k = (torch.cat([t[:, :, :1], apply_rot_embed_cat(t[:, :, 1:], rope)], dim=2) for t in (q, k))
    logits = 2 * torch.tanh(q @ k.transpose(2, 3) / math.sqrt(8) / 2)
    expected = layer.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 10, 32))
    found = capped(x, rope=rope)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(found)
    grads = [torch.autograd.grad((y * probe).sum(), [x, layer.qkv.weight]) for y in (found, expected)]
    torch.testing.assert_close(*grads)


def test_the_cap_of_beit_bounds_what_the_bias_is_added_to():
    layer = beit.Attention(32, num_heads=4, qkv_bias=True, window_size=(3, 3))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    capped = create_capped(lambda: torch.nn.Sequential(layer), "beit_base_patch16_224", 2.0)[0]
    x, shared = torch.randn(2, 10, 32), torch.randn(1, 4, 10, 10)
    bias = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
    q, k, v = (x @ layer.qkv.weight.T + bias).view(2, 10, 3, 4, 8).permute(2, 0, 3, 1, 4)
    logits = 2 * torch.tanh(q @ k.transpose(2, 3) / math.sqrt(8) / 2) + layer._get_rel_pos_bias() + shared
    expected = layer.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 10, 32))
    torch.testing.assert_close(capped(x, shared_rel_pos_bias=shared), expected)


@pytest.mark.parametrize("family", ALIGNED)
def test_an_alignment_step(family, tmp_path):
    """Hidden patches do not reach the teacher, the loss falls, and what is aligned is read from disk as it was."""
    spec = small(ALIGNED[family])
    taught, aligned = check_pair(spec, spec, 30.0)
    teacher = Teacher(load_vit(taught, pretrained=False))
    student = MaskEmbedStudent(load_vit(aligned, pretrained=False), teacher.vit.embed_dim, head="mlp")
    pixels, masks = torch.randn(2, 3, spec.image_size, spec.image_size), torch.rand(6, 9) < 0.5
    hidden = pixels.clone()
    side = spec.image_size // 3
    hidden[0, :, side:, side:] = 0  # four patches that no mask of the first row shows
    masks[0] = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0, 0]).bool()
    torch.testing.assert_close(teacher(pixels, masks)[0], teacher(hidden, masks)[0])
    targets = teacher(pixels, masks)
    optimizer, losses = torch.optim.AdamW(student.parameters(), 3e-3), []
    for _ in range(4):
        loss = (student(pixels, masks) - targets).square().mean()
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in student.parameters())
    save_backbone(tmp_path / "aligned.safetensors", student.encoder.state_dict(), aligned)
    read = create_backbone(dataclasses.replace(aligned, weights=str(tmp_path / "aligned.safetensors"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(pixels), student.encoder.eval().forward_features(pixels))


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_are_refused_in_a_line(family):
    spec = BackboneSpec("hybrid", arch=HYBRIDS[family], image_size=224)
    assert create_backbone(spec, pretrained=False).num_patches == 196
    with pytest.raises(ValueError, match="'hybrid' is a hybrid: its patches come from a convolutional network"):
        check_pair(spec, spec, 30.0)


@pytest.mark.parametrize("arch", ["samvit_base_patch16", "swin_tiny_patch4_window7_224", "convnext_tiny"])
def test_what_has_no_soft_cap_says_so(arch):
    with pytest.raises(ValueError, match=arch):
        check_spec(BackboneSpec("odd", arch=arch, image_size=224, soft_cap=30.0))
