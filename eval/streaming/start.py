"""An engine for a model by name, on whatever device there is."""

import torch
from transformers.utils import logging

import prismatic
from eval.streaming.engine import StreamingEngine
from prismatic.text.speech import speak


def start_engine(
    name: str,
    *,
    precision: str = "auto",
    device: str = "auto",
    batch_size: int = 32,
    waiting: int = 256,
    prompt_style: str = "auto",
    base: str | None = None,
) -> StreamingEngine:
    """An engine that answers with a trained VLM.

    Args:
        name: What `prismatic.load` takes.
        precision: `fp32` or `bf16`; `auto` is bf16 on an accelerator and fp32 on a CPU.
        device: As torch calls it; `auto` is the accelerator if there is one.
        batch_size: As for `StreamingEngine`.
        waiting: As for `StreamingEngine`.
        prompt_style: Name or file of a chat template; `auto` keeps the model's own.
        base: Where what LoRA adapters adapt lies now, if it was moved.

    Raises:
        ValueError: There is no such model, device or prompt style, or the model is of another kind.
    """
    logging.set_verbosity_error()  # transformers' remarks on backends and defaults would stand amid a conversation
    place = device_of(device)
    if precision == "auto":
        precision = "fp32" if place.type == "cpu" else "bf16"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, processor = prismatic.load(name, dtype=dtype, base=base)
    speak(model, processor, prompt_style)
    return StreamingEngine(model.to(place), processor, batch_size, waiting)


def device_of(name: str) -> torch.device:
    """The device of that name; for `auto` the accelerator, if there is one.

    Raises:
        ValueError: There is none such here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not here: {str(error).splitlines()[0]}") from None
