"""Room for more tokens in a language model."""

import torch

from prismatic.models.llm import VOCAB_MULTIPLE

ADDED = 2  # tokens: of padding and of images


@torch.no_grad()
def grow_vocabulary(llm, size: int) -> None:
    """Makes room for `size` tokens, padded to a multiple of 64; new rows are the mean of the old ones.

    Never random: LoRA runs put their base model together again and must find the same rows.

    Raises:
        ValueError: the LLM's embedding cannot grow, or is another tokenizer's.
    """
    try:
        old = llm.get_input_embeddings().num_embeddings
        if size <= old:
            return
        check_fits(old, size)
        llm.resize_token_embeddings(size, pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"LLM of type {llm.config.model_type} takes no new tokens ({error}): choose another"
        ) from error
    for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
        if getattr(layer, "bias", None) is not None:
            layer.bias[old:] = layer.bias[:old].mean()


def check_fits(embedding: int, tokenizer: int) -> None:
    """Raises ValueError where a tokenizer has more tokens than an LLM has, but for the two that this package adds."""
    if tokenizer - ADDED > embedding:
        raise ValueError(
            f"the tokenizer has {tokenizer - ADDED:,} tokens, the LLM's embedding {embedding:,} rows: give its own"
        )
