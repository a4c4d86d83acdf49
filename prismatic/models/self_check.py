"""Whether an LLM computes in a packed row what it computes in a row of its own: tried, for flags of classes may lie.

Models with windows, states, or positions of their own may ignore what packing tells them, and then train on something
else without a word.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prismatic.models.attention import SEGMENTED

LONGEST = 1_100  # tokens that a window is tried with; Gemma-3's has 1,024
TOLERANCE = {torch.float32: 5e-5, torch.float64: 5e-5}  # of the standard deviation of logits; others: 0.06
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention_window")


def window_of(config) -> int | None:
    """Tokens that some layers of an LLM see at most, by its configuration; None if all see everything."""
    found = [getattr(config, name, None) for name in WINDOWS]
    return max((size for size in found if isinstance(size, int) and size > 0), default=None)


def context_of(config) -> int | None:
    """Tokens that an LLM was made for, by its configuration; None if it has no limit."""
    return getattr(config, "max_position_embeddings", None)


def check_context(model, text: int, image: int) -> str | None:
    """What is to be said of rows that may be longer than a VLM's LLM has positions; None if none are.

    Args:
        model: the VLM.
        text: most tokens of text in a row.
        image: tokens of an image, which come on top.

    Raises:
        ValueError: positions are learned, so that there are none beyond.
    """
    context, llm = context_of(model.config.text_config), model.llm
    if not context or text + image <= context:
        return None
    shown = f"a row may have {text} tokens of text and {image} of an image, the LLM's context has {context} positions"
    tables = [m for m in llm.modules() if isinstance(m, torch.nn.Embedding) and m is not llm.get_input_embeddings()]
    if image >= context or any(context <= len(table.weight) < text + image for table in tables):
        raise ValueError(f"{shown}: set --max_length {context - image} or less" if image < context else shown)
    return f"{shown}, and was not trained on more: --max_length {context - image} cuts such rows"


def lengths_to_try(config) -> tuple[int, int]:
    """Of two rows, the first longer than the LLM's window if that is not beyond `LONGEST`."""
    window = window_of(config) or 0
    limit = min(LONGEST, context_of(config) or LONGEST)
    return (window + 5 if 13 < window + 5 <= limit else min(13, limit)), min(6, limit)


def differ(one: torch.Tensor, two: torch.Tensor) -> str | None:
    """How far logits are apart at some position, for a sentence; None if no farther than rounding brings them.

    Root mean squares over the vocabulary: rounding alone brings single logits of a 7B in bfloat16 0.18 apart on a GPU.
    """
    off = (one.float() - two.float()).square().mean(-1).sqrt().max() / two.float().std().clamp(min=1e-12)
    tolerance = max(TOLERANCE.get(logits.dtype, 0.06) for logits in (one, two))  # engines cast theirs to float32
    if off <= tolerance:
        return None
    return f"logits differ by {off:.2g} of their standard deviation"


@contextmanager
def still(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and dropout for a while."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def draw(model, length: int, seed: int) -> torch.Tensor:
    """Random token ids `[1, length]` of a VLM, none of them an image's."""
    ids = torch.randint(model.config.image_token_id, (1, length), generator=torch.Generator().manual_seed(seed))
    return ids.to(next(model.parameters()).device)


def check_causal(model) -> None:
    """Raises ValueError where a token of the VLM's LLM sees later ones."""
    ids, kind = draw(model, lengths_to_try(model.config.text_config)[0], 0), model.config.text_config.model_type
    other = ids.clone()
    last = max(1, ids.shape[1] // 4)  # one token among a thousand moves others by less than rounding does
    other[0, -last:] = (ids[0, -last:] + 1) % model.config.image_token_id
    try:
        with still(model):
            mixed = [1.01 * model.embed(x) for x in (ids, other)]  # of no token, as those of images
            one, two = (model(inputs_embeds=x, attention_mask=torch.ones_like(ids)).logits[:, :-last] for x in mixed)
    except Exception as error:  # of a stranger's architecture: anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"LLM of type {kind} does not read embeddings of images ({reason}): choose another") from error
    if not torch.isfinite(one).all():
        raise ValueError(f"LLM of type {kind} gives logits that are not finite: look at its weights and configuration")
    if problem := differ(one, two):
        raise ValueError(
            f"LLM of type {kind} sees later tokens ({problem}): it cannot be trained to predict them; choose another"
        )


def packing_problem(model, forward: Callable | None = None) -> str | None:
    """Why rows of a VLM cannot be packed; None if they can.

    Args:
        model: a `PrismaticForConditionalGeneration`, with adapters or without.
        forward: how it is called, if it is sharded; all processes then call this.
    """
    forward = forward or model
    text = model.config.text_config
    rows = [draw(model, length, seed) for seed, length in enumerate(lengths_to_try(text))]
    lengths = [row.shape[1] for row in rows]
    with still(forward):
        alone = [forward(input_ids=row, attention_mask=torch.ones_like(row)).logits for row in rows]
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(rows[0].device)
        try:
            with attention(model, SEGMENTED):
                inputs = {"input_ids": torch.cat(rows, dim=1), "position_ids": positions, "segment_lengths": lengths}
                packed = forward(**inputs).logits.split(lengths, dim=1)
        except Exception as error:  # of a stranger's architecture: anything
            return f"it cannot read them ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return next(filter(None, map(differ, packed, alone)), None)


def check_packing(model, forward: Callable | None = None) -> None:
    """Raises ValueError where rows of a VLM cannot be packed: why, and what to do."""
    if problem := packing_problem(model, forward):
        raise ValueError(
            f"rows of an LLM of type {model.config.text_config.model_type} cannot be packed: {problem}; "
            "set --data.packing false"
        )


@contextmanager
def attention(model, name: str) -> Iterator[None]:
    """The VLM's LLM with another attention for a while."""
    own = model.llm.config._attn_implementation
    model.llm.set_attn_implementation(name)
    try:
        yield
    finally:
        model.llm.config._attn_implementation_internal = own
