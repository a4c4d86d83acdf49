"""Room for more tokens in a language model."""

import torch

from prismatic.models.llm import VOCAB_MULTIPLE


@torch.no_grad()
def grow_vocabulary(llm, size: int) -> None:
    """Makes room for `size` tokens, padded to a multiple of 64; new rows are the mean of the old ones.

    Never random: LoRA runs put their base model together again and must find the same rows.

    Raises:
        ValueError: the LLM's embedding cannot grow.
    """
    try:
        old = llm.get_input_embeddings().num_embeddings
        if size <= old:
            return
        llm.resize_token_embeddings(size, pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"LLM of type {llm.config.model_type} takes no new tokens ({error}): choose another"
        ) from error
    for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
        layer.weight[old:] = layer.weight[:old].float().mean(0).to(layer.weight.dtype)
        if getattr(layer, "bias", None) is not None:
            layer.bias[old:] = layer.bias[:old].mean()
