"""peft's own classes read the adapters that a run leaves."""

import json
import re

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModel

import prismatic
from recipes.config.finetune import parse_finetune
from recipes.finetune import main

pytestmark = pytest.mark.usefixtures("any_precision")
RUN = (
    "--vision_backbone miniature-aligned --projector linear --data.annotations miniature:16 --data.workers 0 "
    "--data.held_out_limit 1 --global_batch_size 4 --per_device_batch_size 4 --eval_tasks [] --precision fp32 "
    "--stage lora --max_steps 2 --run_id lora"
).split()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    main(parse_finetune([*RUN, "--run_root", str(root)]))
    return root / "lora" / "checkpoints" / "epoch-01"


def test_adapters_of_a_run(adapters):
    expected, _ = prismatic.load(adapters, merge=False)
    backbone, mark = expected.get_base_model().vision_backbone, expected.get_base_model().config.image_token_id
    ids = torch.tensor([[1, *[mark] * backbone.num_tokens, *range(5, 30)]])
    pixels = torch.randn(1, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))
    found = [
        AutoPeftModelForCausalLM.from_pretrained(adapters),
        PeftModel.from_pretrained(prismatic.build("miniature-aligned", "miniature", "linear")[0], adapters),
    ]
    with torch.no_grad():
        logits = expected(input_ids=ids, pixel_values=pixels).logits
        for model in found:
            words = model.eval()(input_ids=ids, pixel_values=pixels).logits[..., : logits.shape[-1]]
            torch.testing.assert_close(words, logits)
    assert found[0].peft_config["default"].base_model_name_or_path == str(adapters / "base")


def test_the_card_says_what_they_adapt(adapters):
    card = (adapters / "README.md").read_text()
    settings = json.loads(re.search(r"```json\n(.*?)```", card, re.S)[1])
    assert settings == json.loads((adapters / "prismatic_parts.json").read_text())
    assert "More Information Needed" not in card and card.startswith("---\nlibrary_name: peft\n")


def test_the_folder_of_what_they_adapt_is_a_model(adapters):
    kind, place = prismatic.PrismaticForConditionalGeneration, adapters / "base"
    whole, info = kind.from_pretrained(place, torch_dtype=torch.bfloat16, output_loading_info=True)
    assert info == {} and {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    inside = AutoModel.from_pretrained(place)
    original = prismatic.build("miniature-aligned", "miniature", "linear")[0].model.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in inside.state_dict().items())


def test_what_needs_a_whole_model_is_refused(adapters):
    with pytest.raises(ValueError, match="device_map: .* holds no weights, .*prismatic export"):
        prismatic.PrismaticForConditionalGeneration.from_pretrained(adapters / "base", device_map="cpu")
