"""What settings with a fixed set of values can be. Names, for help texts are found beside plain annotations alone."""

from typing import Literal

Precision = Literal["bf16", "fp32"]
Stage = Literal["align", "finetune", "full-finetune", "lora"]
Sharding = Literal["full", "grad-op", "hybrid", "none"]
ReduceDtype = Literal["float32", "bfloat16"]
Decay = Literal["matrices", "as-reference"]
Quantization = Literal["4bit", "8bit"]
OnBadImage = Literal["error", "skip"]
Sampler = Literal["split-modality", "shuffle"]
CropMode = Literal["rkrc", "rkrr", "rrc", "none"]
MaskSampler = Literal["uniform", "bernoulli", "blockwise"]
StudentHead = Literal["linear", "mlp"]
ClassifierHead = Literal["linear", "transformer", "attention"]
FeatureCache = Literal["memory", "disk", "off"]
BoxFrame = Literal["image", "padded-square"]
