"""Image classifiers on a ViT of the registry, for finetuning: the backbone, a pooling head and a linear layer."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Block
from timm.optim import param_groups_layer_decay
from torch import nn

from vision_backbones.backbone_files import write_tensors
from vision_backbones.names import suggest
from vision_backbones.spec import BackboneSpec
from vision_backbones.state_dicts import check_numbers
from vision_backbones.vit import load_vit

HEADS = ("linear", "transformer", "attention")
NEW = ("attn_pool.", "head.")  # what a classifier adds to its backbone


class TransformerPool(nn.Module):
    """One transformer block over all tokens, then their mean."""

    def __init__(self, tokens: int, dim: int, num_heads: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(tokens, dim))
        self.blocks = nn.ModuleList([Block(dim, num_heads, qkv_bias=False)])
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns pooled features `[B, dim]` for tokens `[B, N, dim]`."""
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(dim=1)


def build_classifier(spec: BackboneSpec, head: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Returns a timm ViT from pixels `[B, 3, H, W]` to logits `[B, num_classes]`, with all blocks and the final norm.

    `linear` averages the patches, without prefix tokens; `attention` pools all tokens by a learned query;
    `transformer` sends them through one more block and averages. The head is random, the ViT is as `load_vit` gives
    it: an aligned one keeps its soft-capped attention. Source: the locality alignment paper's ImageNet finetuning.

    Args:
        spec: A resolved spec of a single ViT.
        head: `linear`, `transformer` or `attention`.
        num_classes: Length of the logits, at least 1.
        pretrained: Load the spec's weights into the ViT.

    Raises:
        ValueError: On an unknown head, no classes, a fused spec, or weights that are not found or do not fit.
    """
    if head not in HEADS:
        raise ValueError(f"unknown classifier head '{head}': {suggest(head, HEADS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected 1 or more: count the class folders of the data set")
    if spec.parts:
        raise ValueError(f"backbone '{spec.id}' is fused: classify with a single ViT, e.g. '{spec.parts[0].id}'")
    vit = load_vit(spec, pretrained=pretrained)
    if isinstance(vit.norm, nn.Identity):
        raise ValueError(f"backbone '{spec.id}' normalises after pooling, so that its tokens have no final norm")
    num_heads = vit.blocks[0].attn.num_heads
    if head == "attention":
        vit.attn_pool = AttentionPoolLatent(vit.embed_dim, num_heads=num_heads, norm_layer=nn.LayerNorm)
    elif head == "transformer":
        tokens = vit.num_prefix_tokens + vit.patch_embed.num_patches
        vit.attn_pool = TransformerPool(tokens, vit.embed_dim, num_heads)
    vit.global_pool = "avg" if head == "linear" else "map"
    vit.pool_include_prefix = head != "linear"
    vit.reset_classifier(num_classes)
    return vit


def freeze_backbone(model: nn.Module) -> nn.Module:
    """Returns the classifier with its pool and linear layer alone left to train: linear probing."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(NEW))
    return model


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict]:
    """Returns parameter groups whose `lr_scale` shrinks from the head, 1, to the patch embedding.

    Block i of n, from 0, has `layer_decay ** (n - i)`, patch and position embeddings have `layer_decay ** (n + 1)`;
    the final norm belongs to the last block, head and pool have 1. Vectors and the ViT's position embeddings and
    prefix tokens do not decay. Whoever sets the learning rate multiplies it by `lr_scale`; torch's optimizers do not.
    """
    return param_groups_layer_decay(
        model, weight_decay=weight_decay, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )


def save_classifier(path: Path, model: nn.Module, spec: BackboneSpec, head: str, classes: list[str]) -> None:
    """Writes a classifier as one safetensors file that `load_classifier` reads, all or nothing."""
    metadata = {"spec": json.dumps(spec.to_dict()), "head": head, "classes": json.dumps(classes)}
    write_tensors(path, model.state_dict(), metadata)


def load_classifier(path: Path | str) -> tuple[nn.Module, list[str]]:
    """The classifier of a file, of a checkpoint folder or of a run (its best), and the names of its classes.

    Raises:
        ValueError: There is none.
    """
    path = Path(path)
    places = [path, path / "classifier.safetensors", path / "checkpoints" / "best" / "classifier.safetensors"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise ValueError(f"no classifier at {path}: give a run of recipes/classify.py, or its classifier.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    if "classes" not in metadata:
        raise ValueError(f"{file} is not a classifier written by recipes/classify.py")
    classes = json.loads(metadata["classes"])
    spec = BackboneSpec.from_dict(json.loads(metadata["spec"]))
    model = build_classifier(spec, metadata["head"], len(classes), pretrained=False)
    weights = load_file(file)
    check_numbers(weights, file)
    model.load_state_dict(weights)
    return model.eval(), classes
