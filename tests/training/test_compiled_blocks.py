import copy

import pytest
import torch

from prismatic.training.masked import compile_blocks
from vision_backbones import BackboneSpec
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.registry import resolve_spec
from vision_backbones.vit import build_vit

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
ARCHS = ["vit_base_patch16_224", "vit_small_patch16_dinov3", "eva02_base_patch14_448", "beit_base_patch16_224"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_of_compiled_blocks(arch):
    """Soft-capped, and of kinds whose attention is capped from outside."""
    torch.manual_seed(0)
    spec = BackboneSpec("small", arch=arch, image_size=32, arch_kwargs=SMALL, soft_cap=5.0)
    student = MaskEmbedStudent(build_vit(resolve_spec(spec)), 24)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    compiled = copy.deepcopy(student)
    compile_blocks(compiled)
    pixels, masks = torch.randn(2, 3, 32, 32), torch.rand(6, 16) < 0.5
    for model in (student, compiled):
        model(pixels, masks).square().mean().backward()
    scale = max(p.grad.abs().max() for p in student.parameters())
    for (name, plain), other in zip(student.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad, atol=1e-6 * scale.item(), rtol=1e-4, msg=name)
    assert all(block._compiled_call_impl is not None for block in compiled.encoder.blocks)
