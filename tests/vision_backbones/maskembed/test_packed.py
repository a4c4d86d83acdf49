import copy

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vision_backbones.maskembed.packed import PackedLinear, can_pack, pack_linear
from vision_backbones.maskembed.teacher import Teacher

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 0}
ARCHS = {  # exact GELU, which is fused, and others
    "vit_base_patch16_224": SMALL,
    "vit_base_patch16_clip_quickgelu_224": SMALL,
    "vit_base_patch16_siglip_gap_224": SMALL | {"act_layer": "gelu_tanh"},
    "vit_small_patch14_dinov2": SMALL | {"patch_size": 8},
    "eva02_tiny_patch14_224": SMALL,
    "beit_base_patch16_224": SMALL,
}
FUSED = {arch: "quickgelu" not in arch and "siglip" not in arch and "eva" not in arch for arch in ARCHS}


def teachers(arch, dtype):
    torch.manual_seed(0)
    vit = timm.create_model(arch, **ARCHS[arch])
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = Teacher(vit.to(dtype))
    packed = copy.deepcopy(plain)
    pack_linear(packed)
    return plain, packed


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_packed_layers_compute_the_same(arch, dtype, tolerance):
    plain, packed = teachers(arch, dtype)
    pixels, masks = torch.randn(2, 3, 32, 32), torch.rand(6, 16) < 0.5
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected, got = plain(pixels, masks), packed(pixels, masks)
    assert (got - expected).norm() < tolerance * expected.norm()
    layers = [module for module in packed.modules() if isinstance(module, torch.nn.Linear | PackedLinear)]
    if not can_pack(dtype):
        assert all(type(layer) is torch.nn.Linear for layer in layers)
        return
    if arch.startswith("vit"):
        assert len(layers) == 4 * len(packed.vit.blocks) and all(isinstance(layer, PackedLinear) for layer in layers)
    assert sum(layer.function == "gelu" for layer in layers if isinstance(layer, PackedLinear)) == FUSED[arch] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_packs_what_this_cpu_takes(dtype):
    linear = torch.nn.Linear(8, 8).to(dtype)
    if can_pack(dtype):
        assert PackedLinear(linear)(torch.randn(2, 8)).dtype == dtype
    else:
        with pytest.raises(RuntimeError):
            PackedLinear(linear)


def test_their_operations_are_counted():
    plain, packed = teachers("vit_base_patch16_224", torch.float32)
    counts = []
    for teacher in (plain, packed):
        with FlopCounterMode(display=False) as counter:
            teacher(torch.randn(2, 3, 32, 32), torch.ones(2, 16, dtype=torch.bool))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
