import json

import pytest
import timm
import torch
from catalogue import backbone_on_meta, each_backbone, shallow
from golden_cases import case_names, golden_dir, load_json, requires_golden

from vision_backbones import BackboneSpec, get_spec, list_backbones
from vision_backbones.listing import num_tokens
from vision_backbones.vit import VisionBackbone, build_vit

TABLE = "B_prismatic/B6_transforms/full_size_transform_table.json"
FACTS = golden_dir().parent / "facts" / "backbones.json"


@pytest.mark.parametrize("id", each_backbone())
def test_every_backbone_builds_on_meta_and_announces_its_output(id):
    backbone = backbone_on_meta(id)
    vits = [part.vit for part in getattr(backbone, "parts", [backbone]) if isinstance(part, VisionBackbone)]
    with torch.device("meta"), shallow(vits):
        pixels = torch.empty(2, 3 * max(1, len(backbone.spec.parts)), backbone.image_size, backbone.image_size)
        features = backbone(pixels)
    assert features.shape == (2, backbone.num_tokens, backbone.embed_dim)
    assert backbone.num_patches == backbone.grid[0] * backbone.grid[1]
    assert backbone.num_tokens == backbone.num_patches + backbone.num_prefix_tokens
    assert all(parameter.is_meta for parameter in backbone.parameters())
    assert BackboneSpec.from_dict(backbone.spec.to_dict()) == backbone.spec
    assert num_tokens(get_spec(id)) == backbone.num_tokens


@pytest.mark.parametrize("id", [id for id in list_backbones() if not get_spec(id).parts])
def test_normalisation_agrees_with_timm(id):
    spec = get_spec(id)
    config = timm.get_pretrained_cfg(spec.arch)
    assert spec.interpolation == config.interpolation
    # MoCo v3 has no entry in timm; its architecture's default entry is another model's.
    if id != "moco-vit-b":
        assert (spec.mean, spec.std) == (config.mean, config.std)
    # The reference resizes the shorter edge of SigLIP and ImageNet images to the image size itself.
    if spec.family not in ("siglip", "siglip2", "in1k", "miniature"):
        assert spec.crop_pct == config.crop_pct


def test_pretrained_tags_exist_and_siglip_is_the_first_version():
    for id in list_backbones():
        spec = get_spec(id)
        if spec.arch and not spec.weights:
            assert timm.is_model_pretrained(spec.arch), spec.arch
            assert spec.family != "siglip" or spec.arch.endswith(".webli")


@requires_golden
@pytest.mark.skipif(not FACTS.exists(), reason=f"no {FACTS}")
def test_the_catalog_holds_every_known_backbone():
    facts = json.loads(FACTS.read_text())
    arch = {entry["id"]: (entry["timm"], entry["image_size"]) for entry in facts["vlm"]}
    arch |= {entry["id"]: (entry["arch"], entry["image_size"]) for entry in facts["aligned"]}
    for id, (name, size) in arch.items():
        assert get_spec(id).arch.removesuffix(".webli") == name
        assert get_spec(id).image_size == size
    for entry in facts["aligned"]:
        spec = get_spec(entry["id"])
        assert (spec.weights, spec.soft_cap, spec.aligned) == (entry["weights"], entry["soft_cap"], True)
    for entry in facts["fused"]:
        spec = get_spec(entry["id"])
        assert [part.arch.removesuffix(".webli") for part in spec.parts] == entry["parts"]
        assert spec.image_size == entry["image_size"]
    for id, name in facts["probing_extra"].items():
        if "not in timm" not in name:
            assert get_spec(id).arch.removesuffix(".webli") == name.split()[0]
        assert id in list_backbones()


@requires_golden
@pytest.mark.parametrize("name", [name for name in case_names(TABLE) if name.endswith("/resize-naive")])
def test_architecture_matches_the_reference(name):
    expected, spec = load_json(TABLE)[name], get_spec(name.split("/")[0])
    with torch.device("meta"):
        whole, backbone = build_vit(spec), backbone_on_meta(spec.id)
    block = backbone.vit.blocks[0]
    assert backbone.num_patches == expected["num_patches"]
    assert backbone.vit.num_prefix_tokens == expected["num_prefix_tokens"]
    assert type(block.mlp.act).__name__ == expected["act"]
    assert block.norm1.eps == expected["block_norm_eps"]
    assert type(backbone.vit.norm_pre).__name__ == expected["pre_norm"]
    assert ("LayerNorm" if expected["norm"] == "LayerNorm" else "Identity") == type(backbone.vit.norm).__name__
    assert len(whole.blocks) - len(backbone.vit.blocks) == 3 - expected["blocks_kept_of_depth3"]
    capped = type(block.attn).__name__ == "SoftCapAttention"
    assert capped == (expected["block"] == "StableBlock")
    assert backbone.vit.attn_pool is None
