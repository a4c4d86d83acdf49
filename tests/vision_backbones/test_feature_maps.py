"""Networks without tokens as backbones: what their features are, where each comes from, what is refused."""

import dataclasses

import pytest
import torch
from small_families import MAPS

from vision_backbones import BackboneSpec, check_spec, create_backbone, get_spec
from vision_backbones.backbone_files import write_tensors
from vision_backbones.maskembed.pairing import check_pair
from vision_backbones.vit import build_vit, load_network, load_vit

LAST = {  # family -> what timm's model is watched for, and what is made of it: [B, H, W, D]
    "convnext": (lambda model: model.stages[-1], lambda model, out: out.permute(0, 2, 3, 1)),
    "swin": (lambda model: model.layers[-1], lambda model, out: out),
    "swinv2": (lambda model: model.layers[-1], lambda model, out: out),
    "hiera": (lambda model: model.blocks[-1], lambda model, out: model.reroll(out, len(model.blocks) - 1)),
    "sam": (lambda model: model.blocks[-1], lambda model, out: out),
    "naflex": (lambda model: model.blocks[-2], lambda model, out: out.unflatten(1, (4, 4))),
    "radio-naflex": (lambda model: model.blocks[-2], lambda model, out: out[:, -16:].unflatten(1, (4, 4))),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("family", LAST)
def test_features_are_the_last_stages(family):
    """Those of timm's whole model, watched by a hook, row by row; a NaFlex ViT's are its last block's but one."""
    spec, (watched, as_map) = MAPS[family], LAST[family]
    whole, seen = build_vit(spec).eval(), []
    backbone = create_backbone(spec, pretrained=False).eval()
    assert backbone.network.load_state_dict(whole.state_dict(), strict=False).missing_keys == []
    watched(whole).register_forward_hook(lambda module, inputs, output: seen.append(output))
    pixels = torch.randn(2, 3, 64, 64)
    whole(pixels)
    expected = as_map(whole, seen[0])
    features = backbone(pixels)
    torch.testing.assert_close(features, expected.flatten(1, 2))
    rows, columns = expected.shape[1:3]
    assert backbone.grid == (rows, columns) and backbone.patch_size == 64 // rows == 64 // columns
    assert features.shape == (2, backbone.num_tokens, backbone.embed_dim) and backbone.num_patches == rows * columns
    assert backbone.num_prefix_tokens == 0 and backbone.image_size == 64 and backbone.spec is spec


@pytest.mark.parametrize("family", LAST)
def test_a_patch_is_where_its_pixels_are(family):
    """Pixels in the middle of a patch change that patch most, for all patches; nothing is left without a gradient."""
    spec = MAPS[family]
    backbone = create_backbone(spec, pretrained=False, image_size=4 * layout_stride(spec)).eval()
    side, (rows, columns) = backbone.patch_size, backbone.grid
    assert (rows, columns) == (4, 4)
    pixels = torch.randn(1, 3, 4 * side, 4 * side).expand(16, -1, -1, -1).clone()
    plain = backbone(pixels[:1])
    for number in range(16):
        top, left = number // 4 * side + side // 4, number % 4 * side + side // 4
        pixels[number, :, top : top + side // 2, left : left + side // 2] += 3
    changed = (backbone(pixels) - plain).norm(dim=-1).argmax(-1)
    assert changed.tolist() == list(range(16))
    backbone(pixels[:1]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def layout_stride(spec):
    return create_backbone(spec, pretrained=False).patch_size


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="image size 230 is not a multiple of its patch size 32; use 224 or 256"):
        create_backbone("convnext-dinov3-t", image_size=230)
    with pytest.raises(ValueError, match="'hiera-b': image size 240 is not a multiple"):
        check_spec("hiera-b", image_size=240)
    assert create_backbone(MAPS["swin"], pretrained=False, image_size=96).grid == (3, 3)


def test_weights_of_ones_own(tmp_path):
    """Read strictly, final norm and all, and a file of another network is refused."""
    for family in ("swin", "convnext"):
        network = load_network(MAPS[family], pretrained=False)
        write_tensors(tmp_path / f"{family}.safetensors", network.state_dict(), {})
        read = create_backbone(dataclasses.replace(MAPS[family], weights=str(tmp_path / f"{family}.safetensors")))
        kept = read.network.state_dict()
        assert kept and all(torch.equal(network.state_dict()[name], value) for name, value in kept.items())
    with pytest.raises(ValueError, match="do not fit ConvNeXt"):
        create_backbone(dataclasses.replace(MAPS["convnext"], weights=str(tmp_path / "swin.safetensors")))


@pytest.mark.parametrize("family", LAST)
def test_alignment_is_refused_with_its_reason(family):
    spec = MAPS[family]
    reason = "cannot be masked here" if "naflex" in family else "so that there are no tokens to mask .*; choose a ViT"
    for refused in (
        lambda: check_pair(spec, spec, 30.0),
        lambda: check_pair("miniature", spec, 30.0),
        lambda: check_spec(dataclasses.replace(spec, aligned=True)),
        lambda: create_backbone(spec, pretrained=False, tail_blocks=2),
        lambda: load_vit(spec, pretrained=False),
    ):
        with pytest.raises(ValueError, match=f"{spec.id}.*not a plain ViT: .*{reason}"):
            refused()
    with pytest.raises(ValueError, match="has no tail"):
        create_backbone(spec, pretrained=False).pop_tail()


def test_a_frozen_network_does_not_change_in_training():
    """Swin drops layers at random while it trains (timm's default), batch norm keeps count of what it sees."""
    for spec in (MAPS["swin"], BackboneSpec("batch-norm", arch="resnet18", image_size=64)):
        backbone, pixels = create_backbone(spec, pretrained=False), torch.randn(4, 3, 64, 64)
        model = torch.nn.Sequential(backbone).requires_grad_(False).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert torch.equal(model(pixels), model(pixels)) and not backbone.network.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.requires_grad_(True).train()
        assert backbone.network.training


def test_fused_with_others():
    """Two networks of one grid, a network and a ViT of one grid; other grids are refused before anything is built."""
    parts = (MAPS["convnext"], MAPS["swin"])
    fused = create_backbone(BackboneSpec("two", parts=parts, image_size=64), pretrained=False).eval()
    pixels = torch.randn(2, 6, 64, 64)
    features = fused(pixels)
    assert features.shape == (2, 4, fused.parts[0].embed_dim + fused.parts[1].embed_dim)
    owned = features.split([part.embed_dim for part in fused.parts], dim=-1)
    for part, view, own in zip(fused.parts, pixels.split(3, dim=1), owned, strict=True):
        assert torch.equal(part(view), own)
    kwargs = {"patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
    vit = BackboneSpec("vit", arch="vit_tiny_patch16_224", image_size=64, arch_kwargs=kwargs)
    assert create_backbone(BackboneSpec("x", parts=(MAPS["sam"], vit), image_size=64), pretrained=False).grid == (4, 4)
    with pytest.raises(ValueError, match="one patch grid, got small-convnext 2x2, vit 4x4 at 64 px"):
        check_spec(BackboneSpec("x", parts=(MAPS["convnext"], vit), image_size=64))


def test_a_network_of_timm_by_its_id():
    backbone = create_backbone("timm:resnet18", pretrained=False, image_size=64)
    assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, 4, 512)
    assert get_spec("timm:convnext_tiny.dinov3_lvd1689m").image_size == 224
    with pytest.raises(ValueError, match="soft_cap 30.0"):
        check_spec(BackboneSpec("capped", arch="convnext_tiny", image_size=224, soft_cap=30.0))
