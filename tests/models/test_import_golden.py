"""Checkpoints that the reference wrote, imported, give the logits that it recorded."""

import pytest
import torch
from golden_cases import golden_dir, load_json, load_tensors, requires_golden
from reference import ours, spec_of, within, write_run
from test_vlm_golden import CASES, batch_of, compare_logits
from transformers import AutoConfig, AutoModelForCausalLM

import prismatic
from prismatic.models.reference import import_reference
from prismatic.text.tokenizers import from_tokenizer_json
from vision_backbones.backbone_files import save_backbone
from vision_backbones.vit import build_vit

B7 = "B_prismatic/B7_training"


def golden_llm(folder, case, weights=None):
    """An LLM of a golden VLM as a local folder, with weights if it is to be pretrained."""
    config = AutoConfig.for_model(case["llm_kind"], **case["llm_config"])
    if weights:
        llm = AutoModelForCausalLM.from_config(config)
        llm.load_state_dict(weights)
        llm.save_pretrained(folder)
    config.save_pretrained(folder)
    tokenizer = from_tokenizer_json(golden_dir() / "B_prismatic/B3_tokenisation/tiny_tokenizer.json")
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.save_pretrained(folder)
    return str(folder)


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_a_fully_finetuned_model_gives_the_recorded_logits(name, tmp_path):
    case = load_json("B_prismatic/B5_vlm/cases.json")[name]
    g = load_tensors(f"B_prismatic/B5_vlm/{name}.safetensors")
    backbone = tmp_path / "backbone.safetensors"
    save_backbone(backbone, {"nothing": torch.zeros(1)}, spec_of(case))
    config = {"vision_backbone_id": str(backbone), "llm_backbone_id": golden_llm(tmp_path / "llm", case),
              "arch_specifier": case["arch_specifier"], "image_resize_strategy": "resize-naive"}  # fmt: skip
    modules = {module: within(g, f"{module}.") for module in ("vision_backbone", "llm_backbone", "projector")}
    import_reference(write_run(tmp_path / "run", modules, config), tmp_path / "out")
    model, processor = prismatic.load(tmp_path / "out")
    assert model.config.image_token_id == processor.image_token_id == case["len_tokenizer"]
    with torch.no_grad():
        compare_logits(g, model, batch_of(case, g, model))


@requires_golden
@pytest.mark.parametrize("stage", ["finetune", "align"])
def test_example_checkpoints_give_the_recorded_logits(stage, tmp_path):
    """Trained parts from the reference's own files; the other ones, recorded beside them, are pretrained here."""
    g = load_tensors(f"{B7}/example_checkpoint_finetune_forward.safetensors")
    trained = torch.load(golden_dir() / B7 / "example_checkpoint_finetune.pt", weights_only=True)["model"]
    cases = load_json("B_prismatic/B5_vlm/cases.json")
    found = {ours(f"projector.{name}"): value.shape for name, value in trained["projector"].items()}
    for name in cases:  # the golden VLM that has the shapes of the example
        other = load_tensors(f"B_prismatic/B5_vlm/{name}.safetensors")
        if {ours(k): v.shape for k, v in other.items() if k.startswith("projector.")} == found:
            break
    case = cases[name]
    llm = golden_llm(tmp_path / "llm", case, within(trained["llm_backbone"], "llm.") if stage == "align" else None)
    spec, featurizer = spec_of(case), within(g, "vision_backbone.featurizer.")
    save_backbone(tmp_path / "vit.safetensors", build_vit(spec).state_dict() | featurizer, spec)
    file = golden_dir() / B7 / f"example_checkpoint_{stage}.pt"
    summary = import_reference(file, tmp_path / "out", vision_backbone=str(tmp_path / "vit.safetensors"), llm=llm,
                               projector=case["arch_specifier"].removeprefix("no-align+"))  # fmt: skip
    assert ("llm " + llm + ": pretrained" in summary) == (stage == "align")
    model, _ = prismatic.load(tmp_path / "out")
    marks = torch.full((1, model.vision_backbone.num_tokens), model.config.image_token_id)
    ids = torch.cat([g["input_ids"][:, :1], marks, g["input_ids"][:, 1:]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=g["pixel_values"]).logits
    torch.testing.assert_close(logits, g["logits"], atol=1e-4, rtol=1e-5)
