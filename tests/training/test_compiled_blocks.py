import copy

import pytest
import torch
from small_students import CAPPED, small_student

from prismatic.training.masked import compile_blocks


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAPPED)
def test_gradients_of_compiled_blocks(kind):
    """Soft-capped, and of kinds whose attention is capped from outside."""
    student, pixels, masks = small_student(kind)
    compiled = copy.deepcopy(student)
    compile_blocks(compiled)
    for model in (student, compiled):
        model(pixels, masks).square().mean().backward()
    scale = max(p.grad.abs().max() for p in student.parameters())
    for (name, plain), other in zip(student.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad, atol=1e-6 * scale.item(), rtol=1e-4, msg=name)
    assert all(block._compiled_call_impl is not None for block in compiled.encoder.blocks)
