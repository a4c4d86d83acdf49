"""Adapters on language models of many families: on all their linear layers, and saved, read and merged exactly."""

import pytest
import torch
from families import ELSE, PACK, WORK, write_llm
from golden_cases import ROOT

from prismatic.models.build import build
from prismatic.models.lora import add_lora, lasting, linear_layers, save_parts, with_adapters
from prismatic.models.self_check import draw

FAMILIES = WORK | PACK | {name: ELSE[name] for name in ("stablelm", "lfm2", "falcon", "mpt", "llama4_text")}


def documented():
    lines = (ROOT / "docs" / "llms.md").read_text().split("| adapted layers |")[1].splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {name: (int(layers), share) for name, layers, share in rows}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_layers_are_adapted(family, tmp_path):
    """Counted without their types: every matrix of a block has an adapter."""
    model, _ = build("miniature", write_llm(tmp_path, family, **FAMILIES[family]), "linear")
    ends = [m for m in model.llm.modules() if isinstance(m, torch.nn.Embedding)] + [model.llm.get_output_embeddings()]
    ends = {id(parameter) for end in ends for parameter in end.parameters()}
    matrices = {n: p.numel() for n, p in model.llm.named_parameters() if p.dim() > 1 and id(p) not in ends}
    tuned = add_lora(model, rank=2, alpha=2, dropout=0.0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    before = {name: parameter.clone() for name, parameter in tuned.base_model.model.llm.named_parameters()}
    merged = dict(tuned.merge_and_unload().llm.named_parameters())
    plain = {name.replace(".base_layer", ""): value for name, value in before.items() if "lora_" not in name}
    changed = {name for name in matrices if not torch.equal(merged[name], plain[name])}
    share = sum(matrices[name] for name in changed) / sum(matrices.values())
    assert documented()[family] == (len(changed), f"{share:.0%}")
    assert share > 0.8


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "phi3"])
def test_adapters_are_read_as_they_were(family, tmp_path):
    def fresh():
        return build("miniature", write_llm(tmp_path / "llm", family, **WORK[family]), "linear")[0]

    tuned = add_lora(fresh(), rank=2, alpha=4, dropout=0.0)
    ids = draw(tuned, 12, 0)
    tuned(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0).step()
    tuned.save_pretrained(tmp_path / "adapters"), save_parts(tmp_path / "adapters", {})
    again = with_adapters(fresh(), tmp_path / "adapters").eval()
    with torch.no_grad():
        logits = tuned.eval()(input_ids=ids).logits
        torch.testing.assert_close(again(input_ids=ids).logits, logits, atol=1e-6, rtol=1e-6)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, logits, atol=1e-5, rtol=1e-5)
        assert (merged(input_ids=ids).logits - fresh()(input_ids=ids).logits).abs().max() > 1e-4


def test_targets_that_are_not_there_are_named(tmp_path):
    model, _ = build("miniature", write_llm(tmp_path, "phi3", **WORK["phi3"]), "linear")
    with pytest.raises(ValueError, match=r"targets q_proj, gate: this LLM \(phi3\) has no such layers, but down_proj"):
        add_lora(model, rank=2, alpha=2, dropout=0.0, targets=["q_proj", "o_proj", "gate"])
    assert len(linear_layers(model.llm)[0]) == 8
    moe, _ = build("miniature", write_llm(tmp_path / "moe", "qwen3_moe", **WORK["qwen3_moe"]), "linear")
    with pytest.raises(ValueError, match="--lora.dropout is 0.1: experts' adapters have none"):
        add_lora(moe, rank=2, alpha=2, dropout=0.1)


def test_parts_are_named_so_that_they_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llm").mkdir(parents=True), (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "miniature").mkdir()  # a name goes before a folder
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    parts = {"llm": "models/llm", "vision_backbone": "mine", "init_from": "mine", "image_size": None}
    parts["prompt_style"] = "mine.jinja"
    found = {"llm": f"{tmp_path}/models/llm", "init_from": f"{tmp_path}/runs/mine", "prompt_style": "{{ messages }}"}
    assert lasting(parts) == parts | found
    named = {"llm": "miniature", "vision_backbone": "clip-vit-l-336px", "init_from": "owner/model"}
    assert lasting(named) == named | {"prompt_style": "auto"}
