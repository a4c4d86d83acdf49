"""LLaVA 1.5 in transformers' layout (llava-hf, or `prismatic export --format llava`) as a VLM of ours."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, LlavaConfig

from prismatic.checkpoints.epoch import save_model
from prismatic.models.build import build_processor
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.llava import NAMES
from prismatic.models.llava_processor import RESAMPLE, own_template
from prismatic.models.llm import load_llm, load_tokenizer
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.reject_remote_code import read_object, refuse_code
from prismatic.models.vocabulary import grow_vocabulary
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.speech import stop_where_answers_end
from vision_backbones import BackboneSpec, create_backbone

KINDS = {"clip_vision_model": "vit_base_patch16_clip_224", "siglip_vision_model": "vit_base_patch16_siglip_224"}
PREFIX = {"clip_vision_model": "default", "siglip_vision_model": "full"}  # how its class token, if any, is left out
TIMM_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}  # by transformers' names
IMAGES = "its images come right after BOS here, as in every model of this package"


def import_llava(folder: Path, out: Path, prompt_style: str = "auto") -> str:
    """Writes a LLaVA of transformers' layout as a `save_pretrained` folder in float32, and says what it is made of.

    Args:
        folder: with config.json, *.safetensors, tokenizer and image processor.
        out: new folder.
        prompt_style: name, file or text of a chat template; "auto" is that of the folder, Vicuna's if it has none.

    Raises:
        ValueError: `out` exists, the folder is no such model, or it computes what no model of ours does.
    """
    if out.exists():
        raise ValueError(f"{out} exists already: choose another folder")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no config.json or no *.safetensors: give a folder in the layout of llava-hf")
    refuse_code(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    blocks = _check(config, folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    strategy, transform = _transform(images, config.vision_config.image_size, folder)
    vision, projector = ({name: t.float() for name, t in _tensors(folder, part)} for part in
                         (r"vision_tower\.(?:vision_model\.)?", r"multi_modal_projector\."))  # fmt: skip
    kind = _projector(config, projector, folder)
    template = own_template(_template(folder)) if prompt_style == "auto" else prompt_style
    tokenizer = load_tokenizer(str(folder), template)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if image_id != config.image_token_id:
        raise ValueError(
            f"{folder}: images are token {config.image_token_id} in config.json, but its tokenizer has {IMAGE_TOKEN} "
            f"as {image_id}: take the tokenizer that belongs to the model"
        )
    llm = load_llm(str(folder), dtype=torch.float32)
    grow_vocabulary(llm, len(tokenizer))
    backbone = create_backbone(_spec(config, blocks, transform), pretrained=False, image_resize_strategy=strategy)
    if backbone.vit.blocks[0].norm1.eps != config.vision_config.layer_norm_eps:
        raise ValueError(
            f"{folder}: layer_norm_eps of the vision model is {config.vision_config.layer_norm_eps:g}, expected "
            f"{backbone.vit.blocks[0].norm1.eps:g}, that of timm's {backbone.spec.arch}"
        )
    _fit(backbone.vit, _timm_tensors(vision, blocks), folder)
    model = PrismaticForConditionalGeneration(
        PrismaticConfig(
            text_config=llm.config,
            vision_config=backbone.spec.to_dict(),
            image_size=backbone.image_size,
            image_resize_strategy=strategy,
            projector=kind,
            image_token_id=image_id,
        ),
        llm=llm,
        vision_backbone=backbone,
    )
    names = ("weight", "bias") if kind == "linear" else ("0.weight", "0.bias", "2.weight", "2.bias")
    _fit(model.projector, dict(zip(names, projector.values(), strict=False)), folder)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    stop_where_answers_end(model, tokenizer, llm.generation_config.eos_token_id)
    save_model(model.eval(), build_processor(model, tokenizer), out)
    told = f"{out}: {config.vision_config.model_type} of {blocks} blocks, {kind}, {config.text_config.model_type}; "
    told += f"image_resize_strategy {strategy}; {IMAGES}"
    return told + ("" if strategy == "resize-naive" else "; crops may lie one pixel beside those of transformers")


def _check(config: LlavaConfig, folder: Path) -> int:
    """How many blocks of the vision model its features need."""
    if not isinstance(config, LlavaConfig) or config.vision_config.model_type not in KINDS:
        kind = getattr(getattr(config, "vision_config", None), "model_type", None)
        raise ValueError(
            f"{folder} holds a {config.model_type} with the vision model {kind}, expected a llava with one of "
            f"{', '.join(KINDS)}"
        )
    vision, layer = config.vision_config, config.vision_feature_layer
    layer = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
    if not isinstance(layer, int):
        raise ValueError(f"{folder}: features of the layers {layer} are joined, expected a single layer")
    if vision.model_type == "siglip_vision_model" and layer in (-1, vision.num_hidden_layers):
        raise ValueError(f"{folder}: features are the last block's after a norm, expected an earlier layer, such as -2")
    blocks = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    if not 1 <= blocks <= vision.num_hidden_layers:
        raise ValueError(f"{folder}: vision_feature_layer is {layer} of {vision.num_hidden_layers} blocks")
    if config.vision_feature_select_strategy != PREFIX[vision.model_type]:
        raise ValueError(
            f"{folder}: vision_feature_select_strategy of {vision.model_type} is "
            f"{config.vision_feature_select_strategy}, expected {PREFIX[vision.model_type]}: all patches and no other"
        )
    if vision.hidden_act not in TIMM_ACTIVATIONS:
        raise ValueError(f"{folder}: hidden_act of the vision model is {vision.hidden_act}, expected "
                         f"{', '.join(TIMM_ACTIVATIONS)}")  # fmt: skip
    return blocks


def _transform(images, side: int, folder: Path) -> tuple[str, dict]:
    """The image_resize_strategy of an image processor, and the fields of a spec that define its transform."""
    size, crop = images.size, images.crop_size
    resample = {number: name for name, number in RESAMPLE.items()}.get(int(images.resample))
    scaled = images.do_rescale and images.do_normalize and abs(images.rescale_factor - 1 / 255) < 1e-9
    transform = {"mean": tuple(images.image_mean), "std": tuple(images.image_std), "interpolation": resample}
    cropped = (crop.height, crop.width) == (side, side) if images.do_center_crop else None
    padded = bool(getattr(images, "do_pad", False))
    if images.do_resize and scaled and resample:
        if (size.height, size.width) == (side, side) and not padded and cropped is not False:
            return "resize-naive", transform | {"crop_pct": 1.0}
        if size.shortest_edge and cropped and (not padded or size.shortest_edge == side):
            return "letterbox" if padded else "resize-crop", transform | {"crop_pct": side / size.shortest_edge}
    raise ValueError(
        f"{folder}: its image processor ({type(images).__name__}) has size {size}, crop_size {crop}, do_center_crop "
        f"{images.do_center_crop}, do_pad {padded}, resample {images.resample}; expected squares of {side} pixels, or "
        f"a shortest edge and a crop to {side} pixels, bilinear or bicubic, rescaled by 1/255 and normalised"
    )


def _tensors(folder: Path, part: str) -> Iterator[tuple[str, Tensor]]:
    """Names within a part, and tensors, in the order of their names."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                if found := re.match(rf"(?:model\.)?{part}", name):
                    yield name[found.end() :], file.get_tensor(name)


def _projector(config: LlavaConfig, tensors: dict[str, Tensor], folder: Path) -> str:
    """Name of the projector; of `linear`, the tensors of LLaVA's second layer are taken out."""
    expected = [f"linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
    if sorted(tensors) != sorted(expected):
        raise ValueError(f"{folder}: its projector has {', '.join(tensors) or 'nothing'}; expected {expected}")
    ordered = {name: tensors[name] for name in expected}
    tensors.clear()
    tensors.update(ordered)
    if config.projector_hidden_act == "gelu":
        return "gelu-mlp"
    if config.projector_hidden_act == "linear":
        second, bias = tensors["linear_2.weight"], tensors["linear_2.bias"]
        if torch.equal(second, torch.eye(*second.shape)) and not bias.any():
            return "linear"
    raise ValueError(
        f"{folder}: projector_hidden_act is {config.projector_hidden_act}, expected gelu, or linear before an identity"
    )


def _spec(config: LlavaConfig, blocks: int, transform: dict) -> BackboneSpec:
    vision = config.vision_config
    sizes = {
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": blocks + 1,
        "num_heads": vision.num_attention_heads,
        # timm rounds ratio * width down: half a channel more keeps the quotient exact.
        "mlp_ratio": (vision.intermediate_size + 0.5) / vision.hidden_size,
        "act_layer": TIMM_ACTIVATIONS[vision.hidden_act],
    }
    family = vision.model_type.partition("_")[0]
    return BackboneSpec(
        f"{family}-of-llava", arch=KINDS[vision.model_type], image_size=vision.image_size, family=family,
        arch_kwargs=sizes, allow_border=bool(vision.image_size % vision.patch_size), **transform,
    )  # fmt: skip


def _timm_tensors(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Weights of transformers' vision model under timm's names, without what comes after the features."""
    names, found = {theirs: ours for ours, theirs in NAMES.items()}, {}
    for name, tensor in tensors.items():
        number, own = re.fullmatch(r"(?:encoder\.layers\.(\d+)\.)?(.*)", name).groups()
        part, _, kind = own.rpartition(".")
        block = "" if number is None else f"blocks.{number}."
        if own.startswith(("post_layernorm.", "head.")) or own.endswith("position_ids"):
            continue
        if number is not None and int(number) >= blocks:
            continue
        if own == "self_attn.q_proj." + kind:
            qkv = [tensors.get(name.replace("q_proj", f"{letter}_proj"), tensor[:0]) for letter in "qkv"]
            found[f"{block}attn.qkv.{kind}"] = torch.cat(qkv)
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            ours = names.get(own) or (f"{names[part]}.{kind}" if part in names else own)
            found[block + ours] = tensor
    for name, shape in (("cls_token", (1, 1, -1)), ("pos_embed", (1, *found["pos_embed"].shape))):
        if name in found:
            found[name] = found[name].reshape(shape)
    return found


def _fit(module: torch.nn.Module, found: dict[str, Tensor], folder: Path) -> None:
    own = module.state_dict()
    shapes = [{name: list(tensor.shape) for name, tensor in given.items()} for given in (found, own)]
    if wrong := sorted(name for name in shapes[0].keys() | shapes[1] if shapes[0].get(name) != shapes[1].get(name)):
        name = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} tensors do not fit its config.json: {name} is {shapes[0].get(name, 'missing')}, "
            f"expected {shapes[1].get(name, 'none')}"
        )
    module.load_state_dict(found)


def _template(folder: Path) -> str:
    """Chat template of a folder, text or name."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and isinstance(text := read_object(folder / name).get("chat_template"), str):
            return text
    return "vicuna-v1.5"
