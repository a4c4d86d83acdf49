"""The VLM has the shape that clients of transformers expect, and reads files from before it had."""

import copy

import peft
import pytest
import torch
from families import ALONE, ELSE, PACK, WORK, write_llm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_model import inputs_of, vlm
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

import prismatic
from prismatic import PrismaticForConditionalGeneration
from prismatic.models.modeling import PrismaticModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its processor, and the folder where it is saved."""
    folder = tmp_path_factory.mktemp("saved")
    model, processor = vlm()
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return model, processor, folder


def test_hidden_states_and_head(saved):
    model, processor, folder = saved
    inputs = inputs_of(processor)
    base = AutoModel.from_pretrained(folder)
    assert type(base) is PrismaticModel and type(model.base_model) is PrismaticModel
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**inputs).logits)
        assert torch.equal(base(**inputs, return_dict=False)[0], hidden)
        found = model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found, hidden)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(folder)) is PrismaticForConditionalGeneration


def test_image_features(saved):
    model, processor, _ = saved
    pixels = inputs_of(processor)["pixel_values"]
    with torch.no_grad():
        found = model.get_image_features(pixels)
        features = model.vision_backbone(pixels)
        assert torch.equal(found.last_hidden_state, features)
        assert torch.equal(found.pooler_output, model.projector(features))
        assert torch.equal(model.get_image_features(pixels, return_dict=False)[1], found.pooler_output)


def names_in(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def old_files(model, folder, tmp_path):
    """Saves a model as it was saved when the LLM with its head was inside: its own files, behind `llm.`."""
    model.save_pretrained(folder)
    model.llm.save_pretrained(tmp_path / "alone")
    tensors = {f"llm.{name}": tensor for name, tensor in load_file(tmp_path / "alone" / "model.safetensors").items()}
    for part in ("vision_backbone", "projector"):
        tensors |= {f"{part}.{name}": value for name, value in model.parts()[part].state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return tensors.keys()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "qwen3_moe", "phi", "gemma3_text"])
def test_files_of_earlier_versions_are_read(family, tied, tmp_path):
    llm = write_llm(tmp_path / "llm", family, **WORK[family], tie_word_embeddings=tied)
    model = prismatic.build("miniature", llm, "linear")[0].eval()
    names = old_files(model, tmp_path / "old", tmp_path)
    assert any(name.startswith("llm.") for name in names)
    again = PrismaticForConditionalGeneration.from_pretrained(tmp_path / "old")
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    again.save_pretrained(tmp_path / "new")
    model.save_pretrained(tmp_path / "never old")
    assert names_in(tmp_path / "new") == names_in(tmp_path / "never old")
    assert not any("llm." in name for name in names_in(tmp_path / "new"))
    whole = PrismaticForConditionalGeneration.from_pretrained(tmp_path / "new")
    with torch.no_grad():
        assert torch.equal(whole(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", ["llama4_text", "deepseek_v3", "bloom", "mamba", "rwkv"])
def test_every_parameter_of_an_llm_has_one_name(family, tmp_path):
    llm = write_llm(tmp_path / "llm", family, **(WORK | PACK | ELSE | ALONE)[family])
    model, _ = prismatic.build("miniature", llm, "linear")
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in model.llm.parameters()} <= own
    parts = [p for part in model.parts().values() for p in part.parameters()]
    assert len(parts) == len(own) == len({id(p) for p in parts})
    model.save_pretrained(tmp_path / "whole")
    again = PrismaticForConditionalGeneration.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_replaced_head_is_the_one_that_computes():
    model, processor = vlm()
    inputs = inputs_of(processor)
    with torch.no_grad():
        before = model(**inputs).logits
        model.set_output_embeddings(copy.deepcopy(model.lm_head))
        model.lm_head.weight.mul_(2)
        torch.testing.assert_close(model(**inputs).logits, 2 * before)
    config = peft.LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["lm_head", "embed_tokens"])
    tuned = peft.get_peft_model(model, config)
    tuned(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = {
        name: p.grad is not None and p.grad.any().item() for name, p in tuned.named_parameters() if p.requires_grad
    }
    heads = [found for name, found in trained.items() if "lm_head" in name or "embed_tokens" in name]
    assert len(heads) == 2 and all(heads), trained


def test_a_copy_stands_by_itself():
    model, processor = vlm()
    twin, inputs = copy.deepcopy(model), inputs_of(processor)
    with torch.no_grad():
        before = model(**inputs).logits
        for parameter in twin.llm.parameters():
            parameter.zero_()
        assert torch.equal(model(**inputs).logits, before)
        assert not twin(**inputs).logits.any()


def test_resized_embeddings_are_used(saved):
    model, processor, _ = saved
    model, inputs = copy.deepcopy(model), inputs_of(processor)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 7)
    assert model(**inputs).logits.shape[-1] == rows + 7 == model.llm.get_output_embeddings().out_features
