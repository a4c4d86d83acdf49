import copy

import pytest
import torch
from small_students import CAPPED, small_student

from vision_backbones.maskembed.student import MaskedImageStudent, MaskEmbedStudent


def gradients(student, pixels, masks):
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = student(pixels, masks).square().mean()
    loss.backward()
    return sum(saved.values()), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cls", [MaskEmbedStudent, MaskedImageStudent])
@pytest.mark.parametrize("kind", CAPPED)
def test_gradients_are_the_same_for_less_memory(kind, cls):
    student, pixels, masks = small_student(kind, cls)
    again = copy.deepcopy(student)
    again.set_grad_checkpointing()
    (kept, expected), (less, got) = gradients(student, pixels, masks), gradients(again, pixels, masks)
    assert less < 0.7 * kept
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=1e-5)
