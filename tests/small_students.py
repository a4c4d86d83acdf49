"""Small students of MaskEmbed with random weights, soft-capped."""

import torch

from vision_backbones import BackboneSpec
from vision_backbones.maskembed.student import MaskEmbedStudent
from vision_backbones.registry import resolve_spec
from vision_backbones.vit import build_vit

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
CAPPED = {  # one of every kind of attention
    "plain": "vit_base_patch16_224",
    "dinov3": "vit_small_patch16_dinov3",
    "eva": "eva02_base_patch14_448",
    "beit": "beit_base_patch16_224",
}


def small_student(kind, cls=MaskEmbedStudent):
    """The student, pixels `[2, 3, 32, 32]` and masks `[6, 16]`."""
    torch.manual_seed(0)
    spec = BackboneSpec("small", arch=CAPPED[kind], image_size=32, arch_kwargs=SMALL, soft_cap=5.0)
    student = cls(build_vit(resolve_spec(spec)), 24)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return student, torch.randn(2, 3, 32, 32), torch.rand(6, 16) < 0.5
