"""The 68 named models: the same as the papers', and each can be built."""

import pytest
from catalogue import BUILDS, MODELS, PARTS, on_meta
from golden_cases import load_json, requires_golden

from prismatic.models import stages
from prismatic.models.stages import as_stage
from prismatic.planning import memory as plan


def size(module):
    return sum(p.numel() for p in module.parameters())


@requires_golden
def test_the_grid_is_the_references():
    expected = load_json("B_prismatic/B7_training/all_model_ids.json")
    assert {m["model_id"] for m in expected} == set(MODELS) and len(MODELS) == 68
    for m in expected:
        mine = MODELS[m["model_id"]]
        assert [mine[p] for p in PARTS] == [m["vision"], m["llm"], m["arch"].removeprefix("no-align+"), m["resize"]]
        assert mine["epochs"] == m["finetune_epochs"]


@pytest.mark.parametrize("parts", BUILDS, ids="+".join)
def test_every_named_model_builds_on_the_meta_device(parts):
    model = on_meta(*parts)
    assert model.llm.get_input_embeddings().num_embeddings % 64 == 0
    assert model.config.image_token_id < model.llm.get_input_embeddings().num_embeddings
    assert size(model) == size(model.vision_backbone) + size(model.projector) + size(model.llm)
    stages.halve_frozen(as_stage(model, "finetune", {}))
    sizes = plan.measure(model)
    assert sizes.trained == size(model.projector) + size(model.llm) and sizes.frozen == 0
    assert sizes.root + sizes.block < sizes.trained


def test_parameters_of_clip_gelu_mlp_llama_by_hand():
    model = on_meta("clip-vit-l-336px", "llama2-7b-pure", "gelu-mlp")
    width, patches = 1024, (336 // 14) ** 2
    block = 12 * width**2 + 13 * width
    embedding = 14 * 14 * 3 * width + width + (patches + 1) * width
    assert size(model.vision_backbone) == 23 * block + embedding + 2 * width  # the last block and norm are not used
    assert size(model.projector) == (width * 4096 + 4096) + (4096 * 4096 + 4096)
    assert size(model.llm) == 6_738_415_616 + 2 * 64 * 4096  # Llama-2-7B, and 64 rows for <PAD> and <image>
    assert model.vision_backbone.num_tokens == patches


def test_parameters_of_siglip_aligned_decoder_by_hand():
    model = on_meta("siglip-vit-so400m-384px-aligned", "llama2-7b-pure", "pretrained-decoder")
    width, hidden, tokens = 1152, 4304, 27 * 27
    block = 4 * width**2 + 2 * width * hidden + 9 * width + hidden
    assert size(model.vision_backbone) == 27 * block + 14 * 14 * 3 * width + width + tokens * width + 2 * width
    decoder_block = 12 * width**2 + 15 * width  # LayerScale included
    projector = width**2 + width + tokens * width + 2 * decoder_block + 2 * width + width * 4096 + 4096
    assert size(model.projector) == projector
