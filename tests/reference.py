"""Our models from the reference implementation's recorded weights and batches, and run folders as it leaves them."""

import dataclasses
import json

import torch
import yaml
from golden_cases import load_json, load_tensors
from transformers import AutoConfig

from prismatic import PrismaticConfig, PrismaticForConditionalGeneration
from prismatic.models.reference import DECODER
from prismatic.models.reference import our_name as ours
from vision_backbones import BackboneSpec, get_spec

IMAGE_TOKEN_ID = 561  # the reference's tokenizer has 561 tokens, its embedding 576 rows


def spec_of(case: dict) -> BackboneSpec:
    """The vision backbone of a golden VLM."""
    vit = dict(case["vit"])
    return dataclasses.replace(
        get_spec(case["vision_backbone_id"]), image_size=vit.pop("img_size"), arch_kwargs=vit, weights=None
    )


def build(case: dict, state: dict[str, torch.Tensor]) -> PrismaticForConditionalGeneration:
    """Our model with the weights of a reference VLM, given under the reference's names."""
    projector = case["arch_specifier"].removeprefix("no-align+")
    config = PrismaticConfig(
        text_config=AutoConfig.for_model(case["llm_kind"], **case["llm_config"]),
        vision_config=spec_of(case).to_dict(),
        projector=projector,
        projector_config=DECODER if projector == "pretrained-decoder" else None,
        image_token_id=IMAGE_TOKEN_ID,
    )
    model = PrismaticForConditionalGeneration(config).eval()
    own = model.state_dict()
    renamed = {ours(key): value for key, value in state.items()}
    taken = {key: value for key, value in renamed.items() if key in own}
    missing = [k for k in own if k not in taken and not k.endswith("lm_head.weight")]
    assert not missing, missing
    model.load_state_dict(taken, strict=False)
    return model


def placeholders(
    ids: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, with_image: list[bool], count: int, pad: int
):
    """A reference batch in our layout: placeholders after BOS in rows with an image, padded on the right."""
    rows, targets = [], []
    for row, target, keep, image in zip(ids, labels, mask.bool(), with_image, strict=True):
        row, target = row[keep], target[keep]
        if image:
            marks = torch.full((count,), IMAGE_TOKEN_ID)
            row = torch.cat([row[:1], marks, row[1:]])
            target = torch.cat([target[:1], marks * 0 - 100, target[1:]])
        rows.append(row)
        targets.append(target)
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    return pad_sequence(rows, True, pad), pad_sequence(targets, True, -100)


def vlm_case(name: str):
    """Case, tensors and model of a golden VLM."""
    case = load_json("B_prismatic/B5_vlm/cases.json")[name]
    tensors = load_tensors(f"B_prismatic/B5_vlm/{name}.safetensors")
    return case, tensors, build(case, tensors)


def within(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_run(folder, modules, config=None, kind="json"):
    """A run folder as the reference leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": modules}, folder / "checkpoints" / "latest-checkpoint.pt")
    if config:
        dump = json.dumps if kind == "json" else yaml.safe_dump
        (folder / f"config.{kind}").write_text(dump({"model": config, "stage": "finetune", "run_id": None}))
    return folder
