"""Small and large models that the checks and measurements run: random weights, made on the device."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from transformers import LlamaConfig

from prismatic import PrismaticConfig, PrismaticForConditionalGeneration
from prismatic.models import stages
from prismatic.models.stages import as_stage
from prismatic.training import loop
from vision_backbones import BackboneSpec, get_spec

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}
FAMILIES = {  # one small backbone for each way in which timm writes a ViT
    "in1k": BackboneSpec("in1k", arch="vit_base_patch16_224", image_size=32, arch_kwargs=SMALL),
    "clip": BackboneSpec("clip", arch="vit_base_patch16_clip_quickgelu_224", image_size=32, arch_kwargs=SMALL),
    "siglip": BackboneSpec("siglip", arch="vit_base_patch16_siglip_224", image_size=32, arch_kwargs=SMALL),
    "dinov2": BackboneSpec("dinov2", arch="vit_base_patch14_reg4_dinov2", image_size=32, arch_kwargs=SMALL),
    "beitv2": BackboneSpec("beitv2", arch="beitv2_base_patch16_224", image_size=32, arch_kwargs=SMALL),
    "eva02": BackboneSpec("eva02", arch="eva02_base_patch16_clip_224", image_size=32, arch_kwargs=SMALL),
    "aligned": BackboneSpec(
        "aligned", arch="vit_base_patch16_224", image_size=32, arch_kwargs=SMALL, soft_cap=30.0, aligned=True
    ),
}
LORA = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": []}


FP32, BF16 = 1e-4, 5e-2  # limits: sums in another order; eight bits of mantissa


@dataclass
class Machine:
    """What a part runs on: the device, whether sizes are toys, and a folder for what it writes."""

    device: torch.device
    toy: bool
    folder: Path

    @property
    def is_cuda(self) -> bool:
        """Whether the device is an NVIDIA or AMD GPU."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """What is measured: CPUs are quicker in float32."""
        return "fp32" if self.device.type == "cpu" else "bf16"

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.is_cuda:
            torch.cuda.synchronize()


def small_vlm(seed: int = 0) -> PrismaticForConditionalGeneration:
    """A VLM of a soft-capped backbone and a Llama with grouped heads, on the CPU in float32."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    config = PrismaticConfig(
        text_config=text, vision_config=FAMILIES["aligned"].to_dict(), projector="gelu-mlp", image_token_id=127
    )
    model = PrismaticForConditionalGeneration(config)
    for parameter in model.projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # so that what is seen matters
    return model


def rows(count: int, patches: int, image_size: int, lengths=(12, 40), vocabulary: int = 120, image_token: int = 127):
    """Random training examples of uneven lengths, every fourth without an image; half of the text is supervised."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        length = int(torch.randint(*lengths, (1,), generator=generator))
        ids = torch.randint(3, vocabulary, (length,), generator=generator)
        labels = torch.where(torch.arange(length) < length // 2, -100, ids)
        pixels = None
        if number % 4 != 3:
            ids = torch.cat([ids[:1], torch.full((patches,), image_token), ids[1:]])
            labels = torch.cat([labels[:1], torch.full((patches,), -100), labels[1:]])
            pixels = torch.randn(3, image_size, image_size, generator=generator)
        made.append({"input_ids": ids, "labels": labels, "pixel_values": pixels})
    return made


@dataclass(frozen=True)
class Shape:
    """A named size of VLM to measure, and how it is finetuned."""

    name: str
    backbone: str
    llm: dict
    stage: str
    rows: int
    text: int


SHAPES = [
    Shape(
        "CLIP-L/14-336 + 1B, full", "clip-vit-l-336px",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128_320},
        "finetune", 8, 256,
    ),
    Shape(
        "CLIP-L/14-336 + 7B, LoRA", "clip-vit-l-336px",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "vocab_size": 32_064},
        "lora", 8, 256,
    ),
]  # fmt: skip
TOY_LLM = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1024,
}  # fmt: skip
TOYS = [
    Shape("toy, full", "miniature", TOY_LLM, "finetune", 2, 32),
    Shape("toy, LoRA", "miniature", TOY_LLM, "lora", 2, 32),
]


def config_of(shape: Shape) -> PrismaticConfig:
    """The configuration of a VLM of this shape."""
    spec = get_spec(shape.backbone)
    text = LlamaConfig(max_position_embeddings=4096, **shape.llm)
    return PrismaticConfig(
        text_config=text, vision_config=spec.to_dict(), image_size=spec.image_size, projector="gelu-mlp",
        image_token_id=shape.llm["vocab_size"] - 1,
    )  # fmt: skip


def large_vlm(shape: Shape, machine: Machine):
    """The model as a finetune in bf16 has it, what is frozen in bfloat16; made on the device."""
    with machine.device:
        model = PrismaticForConditionalGeneration(config_of(shape))
        model = as_stage(model, shape.stage, LORA)
    if machine.precision == "bf16":
        stages.halve_frozen(model)
    if not shape.name.startswith("toy"):
        model.activation_checkpointing_enable()
    return model.train()


def twin(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A copy on the device."""
    return copy.deepcopy(model).to(device, dtype)


def difference(found, expected) -> float:
    """Largest distance of two tensors, or dicts of tensors, as a share of the largest expected value."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), f"differ in {sorted(found.keys() ^ expected.keys())[:5]}"
        return max(difference(found[name], value) for name, value in expected.items())
    expected = expected.detach().double().cpu()
    assert torch.isfinite(found).all(), "a value is not finite"  # `max` would pass over NaN
    distance = (found.detach().double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-9)
    return distance.item()


def close(found, expected, limit: float) -> float:
    """`difference`, which must not exceed the limit."""
    share = difference(found, expected)
    assert share <= limit, f"differs by {share:.1e} of the largest value, at most {limit:.0e} is expected"
    return share


class Skipped(Exception):
    """The machine lacks what a check needs."""


def accelerator_of(precision: str, folder: Path):
    """A fresh accelerator: a process keeps the precision of the first one otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return loop.launch(precision, [], str(folder))
