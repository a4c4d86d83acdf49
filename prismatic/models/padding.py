"""Whether an LLM answers in a padded batch as it does alone: tried, not taken from flags."""

import numpy as np
import torch
from PIL import Image

from prismatic.models.self_check import LONGEST, context_of, differ, draw, still, window_of
from prismatic.text.conversations import bos_of


def padding_problem(model, processor) -> str | None:
    """Why questions cannot be padded to a common length; None if they can."""
    bos = bos_of(processor.tokenizer)
    with still(model):
        before, suffixes, picture = rows_after_an_image(model, processor, bos)
        alone = [alone_after(model, before, ids, picture) for ids in suffixes]
        rows = [torch.cat([before, ids], dim=1)[0] for ids in suffixes]
        longest, pad = max(map(len, rows)), processor.tokenizer.pad_token_id
        ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=pad) for row in rows])
        mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long().to(ids.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"attention_mask": mask, "position_ids": positions, "pixel_values": torch.stack([picture] * len(rows))}
        logits = model(input_ids=ids, **inputs).logits[:, -2:]
    problems = (differ(row[None], expected) for row, expected in zip(logits, alone, strict=True))
    return next(filter(None, problems), None)


def rows_after_an_image(model, processor, bos: list[int]) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """What stands before a text `[1, P]`, two texts `[1, T]`, and a picture's pixels."""
    device = next(model.parameters()).device
    before = bos + [processor.image_token_id] * processor.num_image_tokens
    window = window_of(model.config.text_config) or 0
    beyond = window + 5 - len(before) if window + 5 <= LONGEST else 0
    context = context_of(model.config.text_config) or 2 * LONGEST
    room = context - len(before) - 1
    if room < 2:
        raise ValueError(
            f"the LLM's context has {context} tokens, of which an image takes {len(before)}: choose another"
        )
    suffixes = [draw(model, min(length, room), seed) for seed, length in enumerate((max(13, beyond), 6))]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = processor.image_processor.transform(Image.fromarray(noise)).to(device)
    return torch.tensor([before], device=device), suffixes, picture


def alone_after(model, before: torch.Tensor, ids: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Logits `[1, 2, vocabulary]` after the last two tokens of a row by itself."""
    row = torch.cat([before, ids], dim=1)
    return model(input_ids=row, attention_mask=torch.ones_like(row), pixel_values=picture[None]).logits[:, -2:]
