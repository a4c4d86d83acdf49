"""Buffers that no checkpoint holds, rotary tables for one: timm computes them once, when it builds a network."""

from torch import nn


def rebuild_buffers(module: nn.Module) -> None:
    """Computes the buffers anew that `module` itself has and no checkpoint holds; it must not be on the meta device."""
    if hasattr(module, "init_non_persistent_buffers"):
        module.init_non_persistent_buffers()


class RebuiltBuffers(nn.Module):
    """A module whose buffers are right again after `to_empty` from the meta device, and after low precision."""

    def _apply(self, fn, recurse=True):
        before = [(buffer.is_meta, buffer.dtype.itemsize) for buffer in self.buffers()]
        super()._apply(fn, recurse)
        after = [(buffer.is_meta, buffer.dtype.itemsize) for buffer in self.buffers()]
        if any(was > now or size > narrow for (was, narrow), (now, size) in zip(before, after, strict=True)):
            for module in self.modules():
                rebuild_buffers(module)
        return self
