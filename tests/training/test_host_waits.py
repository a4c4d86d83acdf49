"""Where a training step would make the host wait for a device, found on the CPU by its operations."""

import pytest
import torch
from test_loop import examples, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from prismatic.data.batching import collate_packed
from prismatic.models.attention import SEGMENTED
from prismatic.training import losses


class HostQuestions(TorchDispatchMode):
    """Operations whose result or shape a device would have to tell the host before it can go on."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            getattr(i, "dtype", None) == torch.bool for a in args if isinstance(a, (list, tuple)) for i in a
        )
        if masks or name.startswith(self.ASKING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_images", [True, False])
def test_a_packed_step_does_not_wait_for_the_device(with_images):
    model, items = tiny_model(), examples(5)
    items = items if with_images else [item for item in items if item["pixel_values"] is None]
    model.set_attn_implementation({"text_config": SEGMENTED})
    model.train()
    batch = collate_packed(items)
    with HostQuestions() as unprepared:
        losses.supervised_loss(model, batch).backward()
    assert unprepared.found
    batch = losses.TEXT.prepare(model, batch)
    with HostQuestions() as prepared:
        losses.supervised_loss(model, batch).backward()
    assert prepared.found == ["_local_scalar_dense"]  # transformers' own: whether position ids are those of packed rows
