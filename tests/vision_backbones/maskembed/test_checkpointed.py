import copy

import pytest
import torch

from vision_backbones import BackboneSpec
from vision_backbones.maskembed.student import MaskedImageStudent, MaskEmbedStudent
from vision_backbones.registry import resolve_spec
from vision_backbones.vit import build_vit

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
ARCHS = ["vit_base_patch16_224", "eva02_base_patch14_448", "beit_base_patch16_224"]


def gradients(student, pixels, masks):
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = student(pixels, masks).square().mean()
    loss.backward()
    return sum(saved.values()), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [MaskEmbedStudent, MaskedImageStudent])
@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_are_the_same_for_less_memory(kind, arch):
    torch.manual_seed(0)
    spec = BackboneSpec("small", arch=arch, image_size=32, arch_kwargs=SMALL, soft_cap=30.0)
    student = kind(build_vit(resolve_spec(spec)), 24)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    again = copy.deepcopy(student)
    again.set_grad_checkpointing()
    pixels, masks = torch.randn(2, 3, 32, 32), torch.rand(6, 16) < 0.5
    (kept, expected), (less, got) = gradients(student, pixels, masks), gradients(again, pixels, masks)
    assert less < 0.7 * kept
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5)
