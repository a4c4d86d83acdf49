"""Folders that are no language model one can use: one line each, with what is wrong; nothing is drawn at random."""

import json

import pytest
from families import GPT, write_llm
from safetensors.torch import load_file, save_file
from small_tokenizers import byte_level

from prismatic.models.build import build
from prismatic.models.self_check import check_context
from recipes import check_llm


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))


def poison(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


QUANTIZED = {"quant_method": "gptq", "bits": 4}
STRANGE = {
    "part of a tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'),
        "KeyError: .*added_tokens",
    ),
    "other shapes": (lambda f: edit(f / "config.json", intermediate_size=64), "have other shapes than its config.json"),
    "heads": (
        lambda f: edit(f / "config.json", num_attention_heads=5),
        "not a multiple of the number of attention heads",
    ),
    "a package": (lambda f: edit(f / "config.json", quantization_config=QUANTIZED), "ImportError: .*GPTQ"),
    "not a number": (poison, "model.norm.weight has values that are infinite or not a number"),
    "no text": (lambda f: edit(f / "tokenizer_config.json", chat_template=5), "chat template of .* is not a string: 5"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "a folder needs config.json"),
}


@pytest.mark.parametrize("fault", STRANGE)
def test_folders_that_are_damaged_are_one_line(fault, tmp_path):
    write_llm(tmp_path, "llama")
    spoil, message = STRANGE[fault]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        build("miniature", str(tmp_path), "linear")
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_a_tokenizer_of_another_llm_is_refused(tmp_path):
    llm = write_llm(tmp_path, "llama", vocab_size=300)
    with pytest.raises(ValueError, match=rf"tokenizer has {len(byte_level('<s>', '</s>'))} tokens, .* 300 rows"):
        build("miniature", llm, "linear")


def test_results_that_are_tuples_are_not_asked_for(tmp_path):
    write_llm(tmp_path, "llama")
    edit(tmp_path / "config.json", return_dict=False)
    build("miniature", str(tmp_path), "linear")


@pytest.mark.parametrize(("family", "settings"), [("gpt2", GPT | {"n_positions": 80}), ("llama", {})])
def test_rows_longer_than_the_context(family, settings, tmp_path):
    """Refused where positions are learned, said where they are computed."""
    model, _ = build("miniature", write_llm(tmp_path, family, max_position_embeddings=80, **settings), "linear")
    assert check_context(model, 43, 37) is None
    if family == "llama":
        assert "--max_length 43 cuts such rows" in check_context(model, 44, 37)
    else:
        with pytest.raises(ValueError, match="44 tokens of text and 37 .* 80 positions: set --max_length 43"):
            check_context(model, 44, 37)
    with pytest.raises(ValueError, match="context has 80 positions$"):
        check_context(model, 1, 80)
    with pytest.raises(ValueError, match="context has 80 positions$"):
        check_context(model, 1, 400)


def test_one_bad_llm_does_not_keep_the_others_from_being_checked(tmp_path, capsys):
    good, bad = write_llm(tmp_path / "good", "llama"), write_llm(tmp_path / "bad", "llama", max_position_embeddings=36)
    with pytest.raises(ValueError, match=f"^{bad}: the LLM's context has 36 tokens, of which an image takes 37"):
        check_llm.main(check_llm.parse([bad, good]))
    assert f"{good}  yes" in capsys.readouterr().out
