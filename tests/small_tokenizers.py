"""Tokenizers small enough to be trained within a test, and the real one where it is installed."""

import copy
import sys
from functools import cache
from pathlib import Path

import pytest

CORPUS = [
    "Is there a red circle to the left of the blue square? Answer yes or no.",
    "What color is the triangle?\nAnswer the question using a single word or phrase.",
    "A chat between a curious user and an assistant. The assistant gives helpful answers. USER: ASSISTANT:",
    "In: How many cats are there?\nOut: There are 12 cats, 3 dogs and   some spaces.",
    "Describe the image. The picture shows the kitchen of the house in the morning; it is raining again.",
] * 3

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_sentencepiece(folder: Path, **options) -> Path:
    """A sentencepiece model of Llama's kind, unless options make it another."""
    import sentencepiece

    llama = {"model_type": "bpe", "byte_fallback": True, "split_digits": True, "remove_extra_whitespaces": False}
    llama |= {"normalization_rule_name": "identity", "vocab_size": 420, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), minloglevel=2, **(llama | options)
    )
    return folder / "tokenizer.model"


def byte_level_with(control: list[str]):
    """One of GPT-2's kind with more control tokens; BOS is `<s>`, EOS `</s>`."""
    tokenizer = copy.deepcopy(byte_level("<s>", "</s>"))
    tokenizer.add_special_tokens({"extra_special_tokens": control})
    return tokenizer


@cache
def byte_level(bos: str, eos: str, trim_offsets: bool = False):
    """A tokenizer of GPT-2's kind, which adds no special tokens by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(dict.fromkeys([bos, eos]))
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def mistral_model_file() -> Path | None:
    """Mistral's `tokenizer.model` from the package mistral-common, which `make test` puts beside site-packages."""
    file = Path(sys.prefix) / "tokenizers" / "mistral_common" / "data" / "tokenizer.model.v1"
    return file if file.is_file() else None


requires_mistral = pytest.mark.skipif(mistral_model_file() is None, reason="no mistral-common: `make test` fetches it")
