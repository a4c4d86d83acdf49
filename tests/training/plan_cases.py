"""Small models whose real steps are measured and planned."""

from dataclasses import dataclass

from transformers import LlamaConfig

from prismatic import PrismaticConfig
from vision_backbones import BackboneSpec

TEXT, SUPERVISED = 160, 0.5  # text tokens of a row, share of them that is supervised
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]}


@dataclass(frozen=True)
class Case:
    """A step; `rows` in a micro-batch, of which each process runs `accumulation` a step. In bf16 many CPUs are slow."""

    stage: str = "finetune"
    precision: str = "fp32"
    checkpointing: bool = False
    rows: int = 4
    accumulation: int = 1
    sharding: str = "none"
    processes: int = 1
    layers: int = 6


CASES = {
    "finetune": Case(),
    "checkpointing": Case(checkpointing=True, rows=6),
    "lora": Case("lora", rows=2, layers=1),
    "full-finetune": Case("full-finetune"),
    "accumulation": Case(checkpointing=True, accumulation=2),
    "bf16": Case(precision="bf16", rows=1, layers=2),
    "ddp": Case(checkpointing=True, processes=2),
    "full": Case(sharding="full", processes=2),
    "full-checkpointing": Case(checkpointing=True, sharding="full", processes=2),
    "full-accumulation": Case(checkpointing=True, sharding="full", processes=2, accumulation=2),
    "full-bf16": Case(precision="bf16", layers=2, sharding="full", processes=2),
    "grad-op": Case(sharding="grad-op", processes=2),
    "full-lora": Case("lora", "bf16", rows=1, sharding="full", processes=2),
}


def small_config(layers: int = 6, blocks: int = 12) -> PrismaticConfig:
    """ViT-tiny 224/16, gelu-mlp, Llama 512 wide with 32,064 words."""
    text = LlamaConfig(
        vocab_size=32_064,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    spec = BackboneSpec("vit-tiny", "vit_tiny_patch16_224", 224, arch_kwargs={"depth": blocks})
    return PrismaticConfig(text_config=text, vision_config=spec.to_dict(), image_token_id=32_063)
