"""A model that talks, and an engine for it."""

import pytest
from streamed import build

from eval.streaming import StreamingEngine


@pytest.fixture(scope="module")
def parts():
    """A pretrained LLM behind a random projector, which talks until it is cut off or says one of two words."""
    model, processor = build("miniature")
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(["▁circle", "▁square"])
    return model, processor


@pytest.fixture
def engine(parts):
    engine = StreamingEngine(*parts, batch_size=6)
    yield engine
    engine.close(finish=False)
