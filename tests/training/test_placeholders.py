"""Every process reads its own part of an LLM: the same weights as read whole, in little memory."""

import json
import os
import sys
from pathlib import Path

import forked
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prismatic.models.deferred_weights import is_placeholder, placeholder, placeholder_llm, weight_files
from prismatic.models.llm import load_tokenizer

WORKER = Path(__file__).with_name("placeholder_worker.py")


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    """An LLM of 112M parameters in several files, whose embedding has no rows for the tokens that are added."""
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = load_tokenizer("miniature")
    config = LlamaConfig(
        vocab_size=len(tokenizer) - 2, hidden_size=1024, intermediate_size=2752, num_hidden_layers=9,
        num_attention_heads=8, tie_word_embeddings=False, rope_theta=12345.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="150MB")
    tokenizer.save_pretrained(folder)
    return folder


def run(llm: Path, stage: str, how: str) -> list[dict]:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    done = forked.run([WORKER, llm, stage, how, llm], processes=2, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((llm / f"{stage}-{how}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "lora"])
def test_slices_are_what_was_read_whole_in_little_memory(stage, llm):
    slices, whole = run(llm, stage, "slices"), run(llm, stage, "whole")
    for mine, other in zip(slices, whole, strict=True):
        assert len(mine["digests"]) > 80 and mine["digests"] == other["digests"]
        assert mine["peak"] < 1.2 * mine["held"] + mine["block"]
        assert other["peak"] > 1.5 * mine["peak"], "there is something to save"
    assert slices[0]["digests"] != slices[1]["digests"]


def test_a_placeholder_takes_no_memory_and_is_known_as_one(llm):
    big = placeholder(torch.Size((100_000, 100_000)), torch.bfloat16)
    assert is_placeholder(big) and big.untyped_storage().nbytes() == 2
    assert not any(map(is_placeholder, (torch.zeros(3, 3), torch.zeros(()), torch.zeros(1))))
    model = placeholder_llm(str(llm), 800, torch.float32)
    assert all(is_placeholder(p) for p in model.parameters())
    assert model.get_input_embeddings().weight.shape == (832, 1024)
    expected = LlamaForCausalLM.from_pretrained(llm).model.rotary_emb.inv_freq
    assert torch.equal(model.model.rotary_emb.inv_freq, expected)


def test_where_weights_lie(llm, tmp_path):
    files = weight_files(str(llm))
    assert len(set(files.values())) > 1 and "lm_head.weight" in files
    assert set(weight_files("miniature").values()) and weight_files("miniature").keys() > {"model.norm.weight"}
    (tmp_path / "config.json").write_text("{}")
    assert weight_files(str(tmp_path)) is None
