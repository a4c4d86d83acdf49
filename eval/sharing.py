"""Whether an LLM answers with a shared prefix as it does alone: tried, not taken from flags."""

import torch

from eval.engine import SharedPrefixEngine
from prismatic.models.attention import SHARED_PREFIX, SharedPrefix
from prismatic.models.padding import alone_after, rows_after_an_image
from prismatic.models.self_check import attention, differ, still


def sharing_problem(model, processor) -> str | None:
    """Why questions about an image cannot share its keys and values; None if they can.

    Tried with two texts after one image, one of them beyond the LLM's window if that is not too far.
    """
    engine = SharedPrefixEngine(model, processor, 2)
    bos = engine.bos
    with still(model):
        before, suffixes, picture = rows_after_an_image(model, processor, bos)
        alone = [alone_after(model, before, ids, picture) for ids in suffixes]
        try:
            with attention(model, SHARED_PREFIX):
                prefix, texts = engine.prefix([picture]), [ids[0, :-1].tolist() for ids in suffixes]
                state = engine.read(prefix, [0, 0], texts, new=1, keep=1)
                layout = SharedPrefix.of_rows(prefix, [0, 0], state.positions)
                last = torch.stack([ids[0, -1] for ids in suffixes])
                shared = torch.cat([state.logits, engine.step(state, last, layout)], dim=1)
        except Exception as error:  # of a stranger's architecture: anything
            return f"its cache is of another kind ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    problems = (differ(row[None], expected) for row, expected in zip(shared, alone, strict=True))
    return next(filter(None, problems), None)
