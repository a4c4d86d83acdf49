"""What vLLM's backend for models of transformers asks of a model, as far as transformers can say: docs/clients.md."""

import inspect

import pytest
import torch
from transformers import AutoModel, ProcessorMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import prismatic


@pytest.fixture(scope="module")
def loaded():
    return prismatic.load("miniature")


def test_the_model_takes_its_llm_by_the_attention_interface(loaded):
    model, _ = loaded
    assert model._supports_attention_backend and model.model.language_model._supports_attention_backend
    seen = []

    def watched(module, query, key, value, attention_mask, **kwargs):
        seen.append(kwargs.get("from_outside"))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("watched", watched)
    base = AutoModel.from_config(model.config.text_config)
    base.set_attn_implementation("watched")
    base(input_ids=torch.arange(3, 9)[None], from_outside=7)
    assert seen == [7] * model.config.text_config.num_hidden_layers, "arguments reach attention"


def test_parts_have_the_names_and_signatures_that_are_looked_for(loaded):
    model, processor = loaded
    assert model.base_model is model.model and model.model.language_model is model.get_decoder()
    assert model.config.get_text_config() is model.config.text_config
    assert "pixel_values" in inspect.signature(model.get_image_features).parameters
    assert {"input_ids", "inputs_embeds", "position_ids"} <= inspect.signature(model.model.forward).parameters.keys()
    assert isinstance(processor, ProcessorMixin)
    inputs = processor(text=["Why?"], return_mm_token_type_ids=True)
    assert inputs["mm_token_type_ids"].shape == inputs["input_ids"].shape
    counts = processor._get_num_multimodal_tokens(image_sizes=[(64, 64), (30, 90)])
    assert counts.num_image_tokens == [processor.num_image_tokens] * 2 and len(counts.num_image_patches) == 2


def test_embeddings_of_others_are_read(loaded):
    """The backend embeds tokens and images itself, and calls the model with embeddings."""
    model, _ = loaded
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = model.model(inputs_embeds=model.get_input_embeddings()(ids), position_ids=torch.arange(7)[None])
    torch.testing.assert_close(model.lm_head(found.last_hidden_state), expected)
