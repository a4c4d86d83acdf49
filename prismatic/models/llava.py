"""VLMs of ours as `LlavaForConditionalGeneration`, which servers know; what would not be exact is refused.

Features of an unaligned backbone are its second-to-last block's patches, as LLaVA 1.5 takes them
(`vision_feature_layer` -2). Our ViTs end there: the block after it, and the norm that closes transformers' vision
models, are written as zeros and ones, and compute nothing that is used.
"""

import copy
import re
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.utils import logging

from prismatic.models.llava_processor import QUESTIONS, RESAMPLE, check_processor, llava_processor, noise
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.processing import PrismaticProcessor
from vision_backbones.files import put_folder
from vision_backbones.vit import VisionBackbone

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}  # of timm and transformers
PROJECTORS = {"gelu-mlp": "gelu", "linear": "linear"}  # the activation between LLaVA's two layers
NAMES = {  # of timm's ViTs and of transformers' CLIP and SigLIP
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm_pre": "pre_layrnorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TOWER, PROJECTOR = "vision_tower.vision_model.", "multi_modal_projector."  # as llava-hf's files have them
INSTEAD = "leave out --format llava"
EXACT = 1e-5  # of logits in float32, as a share of the largest


def export_llava(
    model: PrismaticForConditionalGeneration, processor: PrismaticProcessor, out: Path, dtype: str = "float32"
) -> list[str]:
    """Writes the model as a `LlavaForConditionalGeneration` with its `LlavaProcessor` to the new folder `out`.

    Before the folder is there, logits, token ids and pixel values of a few images and conversations are compared.

    Args:
        model: in float32, in which it is compared.
        processor: beside it.
        out: must not exist.
        dtype: name of the precision to write in.

    Returns:
        What is to be known of the folder, in sentences.

    Raises:
        ValueError: `out` exists, or LLaVA's model or processor cannot compute exactly what these do.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    twin, tensors = as_llava(model)
    theirs = llava_processor(model, processor)
    tmp_path = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        theirs.save_pretrained(tmp_path)
        twin.config.save_pretrained(tmp_path)  # which its processor is found by
        notes = check_processor(
            processor, AutoProcessor.from_pretrained(tmp_path, backend="pil", trust_remote_code=False)
        )
        check_logits(model, twin, processor)
        twin.config.dtype = getattr(torch, dtype)
        twin.config.save_pretrained(tmp_path)
        tensors = {name: value.to(twin.config.dtype) for name, value in tensors.items()}
        save_torch_state_dict(tensors, tmp_path, filename_pattern="model{suffix}.safetensors")
        twin.generation_config.save_pretrained(tmp_path)
        check_names(tmp_path)
        put_folder(tmp_path, out)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    notes.append(
        'pixel values are exact with AutoProcessor.from_pretrained(OUT, backend="pil"): its default, torchvision, '
        "rounds otherwise, as do programs that resize images themselves"
    )
    if model.config.projector == "linear":
        notes.append("projector_hidden_act is 'linear': programs that always compute GELU there give other answers")
    return notes


def check_exact(model: PrismaticForConditionalGeneration) -> None:
    """Raises ValueError for models that LLaVA's architecture or image processor cannot express, with the reason."""
    spec, config, llm = model.vision_backbone.spec, model.config, model.llm
    backbone, cannot = f"backbone '{spec.id}'", "cannot be exported exactly as LLaVA:"
    if not isinstance(model.vision_backbone, VisionBackbone):
        found = (
            f"is fused of {len(spec.parts)} ViTs, expected one" if spec.parts else "gives feature maps, expected a ViT"
        )
        raise ValueError(f"{backbone} {cannot} it {found}; {INSTEAD}")
    if spec.soft_cap:
        raise ValueError(
            f"{backbone} {cannot} its attention is soft-capped at {spec.soft_cap:g}, expected none, which is all that "
            f"transformers' CLIP and SigLIP compute; {INSTEAD}"
        )
    if spec.reads_last:
        raise ValueError(
            f"{backbone} {cannot} its features are the last block's after the final norm, with prefix tokens, expected "
            f"a block's patches; {INSTEAD}"
        )
    if config.projector not in PROJECTORS:
        raise ValueError(
            f"projector '{config.projector}' {cannot} LLaVA has two layers, expected {' or '.join(PROJECTORS)}; "
            f"{INSTEAD}"
        )
    if config.image_resize_strategy != "resize-naive":
        raise ValueError(
            f"image_resize_strategy '{config.image_resize_strategy}' {cannot} transformers pads and crops by an odd "
            f"number of pixels otherwise, expected resize-naive; {INSTEAD}"
        )
    if spec.interpolation not in RESAMPLE:
        raise ValueError(f"interpolation '{spec.interpolation}' {cannot} expected {', '.join(RESAMPLE)}; {INSTEAD}")
    head = model.get_output_embeddings()
    others = [name for name, _ in model.named_children() if name not in ("model", "lm_head")]
    if type(head) is not nn.Linear or head.bias is not None or others:
        found = f"beside it {', '.join(others)}" if others else "a bias" if type(head) is nn.Linear else f"type {head}"
        raise ValueError(f"the head of the LLM ({type(llm).__name__}) {cannot} it has {found}; {INSTEAD}")
    if config.text_config.tie_word_embeddings and not hasattr(model.model.language_model, "embed_tokens"):
        raise ValueError(
            f"the LLM ({type(llm).__name__}) {cannot} LLaVA ties its head to a module called embed_tokens, which it "
            f"lacks; {INSTEAD}"
        )


def vision_config(backbone: VisionBackbone) -> CLIPVisionConfig | SiglipVisionConfig:
    """The configuration of transformers' vision model, with one block more than the backbone has.

    Raises:
        ValueError: the ViT is neither built as CLIP's nor as SigLIP's.
    """
    vit, block = backbone.vit, backbone.vit.blocks[0]
    activation, patch = type(block.mlp.act).__name__, vit.patch_embed.proj
    clip = vit.num_prefix_tokens == 1 and isinstance(vit.norm_pre, nn.LayerNorm) and patch.bias is None
    siglip = vit.num_prefix_tokens == 0 and isinstance(vit.norm_pre, nn.Identity) and patch.bias is not None
    refused = f"backbone '{backbone.spec.id}' ({backbone.spec.arch}) cannot be exported exactly as LLaVA:"
    if not (clip or siglip):
        raise ValueError(f"{refused} it is built neither as CLIP's nor as SigLIP's; {INSTEAD}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{refused} its activation is {activation}, expected {', '.join(ACTIVATIONS)}; {INSTEAD}")
    options = {"vision_use_head": False} if siglip else {"projection_dim": backbone.embed_dim}
    act = "gelu_pytorch_tanh" if getattr(block.mlp.act, "approximate", "") == "tanh" else ACTIVATIONS[activation]
    return (CLIPVisionConfig if clip else SiglipVisionConfig)(
        hidden_size=backbone.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(vit.blocks) + 1,
        num_attention_heads=block.attn.num_heads,
        image_size=backbone.image_size,
        patch_size=patch.kernel_size[0],
        hidden_act=act,
        layer_norm_eps=block.norm1.eps,
        **options,
    )


def vision_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a timm ViT under transformers' names.

    Raises:
        ValueError: it has some that CLIP and SigLIP lack.
    """
    found = {}
    for name, tensor in state.items():
        block, own = re.fullmatch(r"(blocks\.\d+\.)?(.*)", name).groups()
        layer = block.replace("blocks", "encoder.layers") if block else ""
        part, _, kind = own.rpartition(".")
        if part == "attn.qkv":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{layer}self_attn.{letter}_proj.{kind}"] = third
        elif own in NAMES:
            found[NAMES[own]] = tensor.flatten() if own == "cls_token" else tensor[0]
        elif part in NAMES:
            found[f"{layer}{NAMES[part]}.{kind}"] = tensor
        else:
            raise ValueError(f"this ViT cannot be exported exactly as LLaVA: CLIP and SigLIP have no {name}; {INSTEAD}")
    return found


def as_llava(model: PrismaticForConditionalGeneration) -> tuple[LlavaForConditionalGeneration, dict[str, Tensor]]:
    """The model as transformers' LLaVA, which shares its LLM, and its weights under the names of llava-hf's files.

    Raises:
        ValueError: it cannot be expressed exactly.
    """
    check_exact(model)
    backbone, llm = model.vision_backbone, model.llm
    vision = vision_config(backbone)
    text = copy.deepcopy(model.config.text_config)
    text.architectures = [type(llm).__name__]  # converters ask for it
    clip = backbone.vit.num_prefix_tokens
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=model.config.image_token_id,
        image_seq_length=backbone.num_tokens,
        projector_hidden_act=PROJECTORS[model.config.projector],
        vision_feature_select_strategy="default" if clip else "full",
        vision_feature_layer=-2,
        tie_word_embeddings=text.tie_word_embeddings,
        architectures=["LlavaForConditionalGeneration"],
    )
    with torch.device("meta"):
        twin = LlavaForConditionalGeneration(config)
    tower = AutoModel.from_config(vision).to(model.dtype)
    found = vision_tensors(backbone.vit.state_dict())
    unused = {n: torch.ones_like(t) if n.startswith("post_") and n.endswith("weight") else torch.zeros_like(t)
              for n, t in tower.state_dict().items() if _is_unused(n, len(backbone.vit.blocks))}  # fmt: skip
    tower.load_state_dict(found | unused)
    twin.model.vision_tower = tower
    twin.model.language_model, twin.lm_head = model.model.language_model, model.lm_head
    twin.model.multi_modal_projector.load_state_dict(_projector_tensors(model.projector), assign=True)
    twin.generation_config = copy.deepcopy(model.generation_config)
    tensors = {TOWER + name: value for name, value in tower.state_dict().items()}
    tensors |= {PROJECTOR + name: value for name, value in _projector_tensors(model.projector).items()}
    tied = set(llm._tied_weights_keys or {}) if text.tie_word_embeddings else set()
    tensors |= {f"language_model.{name}": value for name, value in llm.state_dict().items() if name not in tied}
    return twin.eval(), tensors


def _is_unused(name: str, blocks: int) -> bool:
    """Whether it is of the block after the features, or of the norm at the end."""
    return name.startswith((f"encoder.layers.{blocks}.", "post_layernorm."))


def _projector_tensors(projector: nn.Module) -> dict[str, Tensor]:
    """Those of LLaVA's two layers; of a single matrix, the second one is the identity."""
    if isinstance(projector, nn.Linear):
        eye = torch.eye(projector.out_features, dtype=projector.weight.dtype)
        layers = ((projector.weight, projector.bias), (eye, torch.zeros_like(projector.bias)))
    else:
        layers = ((projector[0].weight, projector[0].bias), (projector[2].weight, projector[2].bias))
    return {
        f"linear_{number}.{kind}": tensor.detach()
        for number, pair in enumerate(layers, 1)
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
    }


@torch.no_grad()
def check_logits(model: PrismaticForConditionalGeneration, twin: nn.Module, processor: PrismaticProcessor) -> None:
    """Raises ValueError where the logits of a question about an image differ by more than `EXACT`."""
    inputs = dict(processor.ask([QUESTIONS[0]], [noise((97, 61))]))
    ours, theirs = (one(**inputs).logits for one in (model.eval(), twin))
    difference, limit = (ours - theirs).abs().max(), EXACT * ours.abs().max().clamp(min=1)
    if not difference <= limit:
        raise ValueError(
            f"LLaVA computes other logits (by {difference:.1e}, at most {limit:.1e} is expected): its LLM, "
            f"{type(model.llm).__name__}, does more after its head, such as to cap or scale logits; {INSTEAD}"
        )


def check_names(folder: Path) -> None:
    """Raises ValueError where transformers misses weights in a written folder, or finds more; reads none of them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table of all names
    try:
        _, info = LlavaForConditionalGeneration.from_pretrained(folder, device_map="meta", output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        raise ValueError(
            f"transformers' LLaVA does not find this LLM's weights by their names ({wrong[0]} and {len(wrong) - 1} "
            f"more): {INSTEAD}"
        )
