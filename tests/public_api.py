"""How the public API is used, for the type checker of `make lint`: every call and what it gives. Never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch

import prismatic
from eval.task import Choose, Example, Generate, Scorer, Task
from eval.tasks import get_task, list_tasks
from prismatic import PrismaticConfig, PrismaticForConditionalGeneration, PrismaticProcessor
from vision_backbones import BackboneSpec, create_backbone, get_spec, list_backbones, register
from vision_backbones.maskembed.loss import reconstruction_loss
from vision_backbones.maskembed.mask_samplers import sample_masks
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.maskembed.teacher import Teacher
from vision_backbones.vit import VisionBackbone


def models(run: Path, pixels: torch.Tensor) -> None:
    model, processor = prismatic.load(run, dtype=torch.bfloat16, device_map="auto")
    assert_type(model, PrismaticForConditionalGeneration)
    assert_type(processor, PrismaticProcessor)
    built, _ = prismatic.build("miniature", "miniature", "linear", prompt_style="pure", pretrained=False)
    assert_type(built, PrismaticForConditionalGeneration)
    config = PrismaticConfig(projector="linear", image_token_id=3)
    PrismaticForConditionalGeneration(config, llm=built.llm, vision_backbone=built.vision_backbone)
    model.embed(pixels, pixel_values=pixels)
    model.set_attn_implementation({"text_config": "sdpa"})


def backbones(name: str) -> None:
    spec = get_spec(name)
    assert_type(spec, BackboneSpec)
    assert_type(list_backbones(), list[str])
    register(BackboneSpec("mine", arch="vit_base_patch16_224", image_size=224))
    backbone = create_backbone(spec, pretrained=False, image_size=64)
    tokens: int = backbone.num_tokens
    if isinstance(backbone, VisionBackbone):
        print(backbone.embed_dim, tokens)


def alignment(vit: torch.nn.Module, pixels: torch.Tensor) -> None:
    teacher, student = Teacher(vit), MaskEmbedStudent(vit, 64, head="mlp", decoder_blocks=1)
    masks = sample_masks(np.random.default_rng(0), 2, 16)
    reconstruction_loss(student(pixels, masks), teacher(pixels, masks), masks, "cosine")


def tasks(root: Path) -> None:
    assert_type(list_tasks(), list[Task])
    task = get_task("refcoco")
    assert_type(task, Task)
    example = Example("0", "a.jpg", "the cat", [0.0, 0.0, 1.0, 1.0])
    kinds: list[Generate | Choose] = [Generate(8), Choose(("A", "B"))]
    scorer: Scorer = task.scorer
    print(example, kinds, scorer, root)
