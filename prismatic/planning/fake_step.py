"""What one training step keeps in memory and computes, found by running it on tensors without data.

Model, objective, autograd and checkpointing are the real ones; the tensors are torch's fake CPU tensors, which have
shapes and lifetimes but no content. A 7B model takes seconds and no memory.
"""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from prismatic.flops import flops_of
from prismatic.models import stages
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.stages import as_stage
from prismatic.training import losses, sharding
from vision_backbones import soft_cap

KINDS = ("activations", "logits", "gradients of blocks", "gradients of the root")
_aten = torch.ops.aten


def meta_model(config: PrismaticConfig, stage: str, *, lora: dict, precision: str, gradient_checkpointing: bool):
    """The model as a finetune prepares it, on the meta device."""
    with torch.device("meta"):
        model = PrismaticForConditionalGeneration(
            config
        ).float()  # in whatever an LLM is stored, training reads float32
        model.llm.set_attn_implementation("sdpa")
        model = as_stage(model, stage, lora)
    if precision == "bf16":
        stages.halve_frozen(model)
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


class Step:
    """Forward and backward pass of one micro-batch whose rows are all alike, on fake tensors.

    Args:
        model: from `meta_model`; its tensors are replaced.
        precision: "bf16" or "fp32".
        sharded: units are cast to the precision as FSDP does, instead of autocast.
        supervised: share of the text tokens that is supervised.
    """

    def __init__(self, model: nn.Module, precision: str, *, sharded: bool, supervised: float):
        self.model, self.supervised, self.fake = model, supervised, FakeTensorMode()
        self.autocast = precision == "bf16" and not sharded
        self.base = sharding.base_model(model)
        made: dict[torch.Tensor, torch.Tensor] = {}  # tied parameters stay one
        with self.fake:
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    for name, old in tensors.items():
                        if old is not None and old not in made:
                            cast = precision == "bf16" and sharded and isinstance(old, nn.Parameter)
                            made[old] = torch.empty(
                                old.shape, dtype=torch.bfloat16 if cast else old.dtype, device="cpu"
                            )
                            if isinstance(old, nn.Parameter):
                                made[old] = nn.Parameter(made[old], requires_grad=old.requires_grad)
                        if old is not None:
                            tensors[name] = made[old]
        self.known = {tensor.untyped_storage()._cdata for tensor in made.values()}
        self.in_blocks = {p for block in sharding.blocks(model) for p in block.parameters()}

    def memory(self, rows: int, text: int) -> torch.Tensor:
        """Bytes alive `[events, 4]` of each of `KINDS` after every allocation of a step.

        Gradients are those already handed to their parameter; the root's are those outside of transformer blocks. The
        batch counts as activations.
        """
        batch, count = self._batch(rows, text, image=True)
        live = _LiveBytes(self.known, count, self.base.config.text_config.vocab_size)
        for tensor in batch.values():
            live.see(tensor)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        hooks = [
            p.register_post_accumulate_grad_hook(partial(live.see_gradient, kind=2 if p in self.in_blocks else 3))
            for p in trained
        ]
        gc.collect()
        gc.disable()  # else cycles would end at other moments each time
        try:
            self._run(batch, live)
        finally:
            gc.enable()
            for hook in hooks:
                hook.remove()
        return torch.tensor(live.events)

    def flops(self, text: int, *, image: bool) -> int:
        """Floating-point operations of an example's forward and backward pass, recomputation included."""
        batch, count = self._batch(1, text, image=image)
        counter = _Flops(count)
        self._run(batch, counter)
        return counter.total

    def _batch(self, rows: int, text: int, *, image: bool) -> tuple[losses.Batch, int]:
        tower = self.base.vision_backbone
        count = rows * max(1, round((text - 1) * self.supervised))
        with self.fake:
            ids = torch.empty(rows, text + image * tower.num_tokens, dtype=torch.long)
            supervised = torch.empty(count, dtype=torch.long)
            batch = {"input_ids": ids, "labels": torch.empty_like(ids), "supervised": supervised}
            if image:
                side, channels = tower.image_size, 3 * max(1, len(tower.spec.parts))
                batch["pixel_values"] = torch.empty(rows, channels, side, side)
                batch["image_positions"] = torch.empty(rows * tower.num_tokens, dtype=torch.long)
        return batch, count

    def _run(self, batch: losses.Batch, mode: TorchDispatchMode) -> None:
        with _as_in_training(), self.fake, mode:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = losses.TEXT.loss_sum(self.model, batch)
            loss.backward()
        self.model.zero_grad(set_to_none=True)


class _Answers(TorchDispatchMode):
    """Answers what would need data: how many positions a mask selects, and whether a check fails (it does not)."""

    def __init__(self, selected: int):
        super().__init__()
        self.selected = selected

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is _aten._local_scalar_dense.default:
            return False
        if func is _aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            tensor, (mask, *_) = args[:2]
            out = tensor.new_empty((self.selected, *tensor.shape[mask.ndim :]))
        else:
            out = func(*args, **(kwargs or {}))
        self.notice(func, args, kwargs or {}, out)
        return out

    def notice(self, func, args, kwargs, out) -> None:
        """Called with every operation and what it gave."""
        raise NotImplementedError


class _Flops(_Answers):
    """Adds up floating-point operations as `flop_counter` does, several times faster."""

    total = 0

    def notice(self, func, args, kwargs, out) -> None:
        if isinstance(func, torch._ops.OpOverload):
            self.total += flops_of(func.overloadpacket, args, kwargs, out)


class _LiveBytes(_Answers):
    """Adds up the bytes of living storages, apart from `known` ones."""

    def __init__(self, known: set[int], selected: int, vocabulary: int):
        super().__init__(selected)
        self.seen, self.kinds, self.bytes, self.events = set(known), {}, [0] * len(KINDS), []
        self.logits_shape = (selected, vocabulary)

    def notice(self, func, args, kwargs, out) -> None:
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)

    def see(self, tensor: torch.Tensor) -> None:
        """Counts the tensor's storage from now until it dies, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.kinds[key] = KINDS.index("logits" if tuple(tensor.shape[-2:]) == self.logits_shape else "activations")
        self.bytes[self.kinds[key]] += size
        self.events.append(tuple(self.bytes))
        weakref.finalize(storage, self._end, key, size).atexit = False

    def see_gradient(self, parameter: nn.Parameter, kind: int) -> None:
        """Counts a parameter's gradient as this kind from now on."""
        storage = parameter.grad.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.kinds:
            self.bytes[self.kinds[key]] -= size
            self.kinds[key] = kind
            self.bytes[self.kinds[key]] += size
            self.events.append(tuple(self.bytes))

    def _end(self, key: int, size: int) -> None:
        self.bytes[self.kinds.pop(key)] -= size
        self.seen.discard(key)


@contextmanager
def _as_in_training() -> Iterator[None]:
    """Replaces what would take another way for fake tensors on a CPU than for real ones on an accelerator.

    Soft-capped attention computes all rows at once, not in parts that fit a cache. Hugging Face's masks look whether
    rows are packed, and where they cannot, write a mask for the case; these rows are not.
    """
    replaced = [
        (soft_cap, "CHUNK", 2**62),
        (masking_utils, "find_packed_sequence_indices", lambda position_ids: None),
    ]
    saved = [getattr(module, name) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(replaced, saved, strict=True):
            setattr(module, name, value)
