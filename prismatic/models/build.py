"""Making new VLMs from parts."""

import torch
from safetensors.torch import load_file

from prismatic.models.configuration import PrismaticConfig
from prismatic.models.deferred_weights import placeholder_llm
from prismatic.models.image_processing import PrismaticImageProcessor
from prismatic.models.llm import VOCAB_MULTIPLE, get_llm_spec, llm_config, load_llm, load_tokenizer
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.processing import PrismaticProcessor
from prismatic.models.projectors import TAIL_BLOCKS, check_projector, decoder_config, decoder_file
from prismatic.models.self_check import check_causal
from prismatic.models.vocabulary import grow_vocabulary
from prismatic.text.prompts import IMAGE_TOKEN
from prismatic.text.speech import stop_where_answers_end, template_of
from vision_backbones import BackboneSpec, check_spec, create_backbone, get_spec
from vision_backbones.transforms import image_transform
from vision_backbones.weights import find_weights


def check_parts(
    vision_backbone: str,
    llm: str,
    projector: str,
    image_resize_strategy: str = "resize-naive",
    image_size: int | None = None,
    pretrained: bool = True,
    prompt_style: str = "auto",
) -> BackboneSpec:
    """The resolved backbone spec if these parts fit together; reads no weights.

    Raises:
        ValueError: unknown names, an image size that does not fit the patches, a projector that does not fit, or, if
            `pretrained`, a weights file of ours that is not there.
    """
    get_llm_spec(llm)
    template_of(prompt_style)
    spec = get_spec(vision_backbone)
    check_projector(projector, fused=bool(spec.parts), aligned=spec.aligned and spec.reads_last)
    spec = check_spec(spec, image_size=image_size)
    image_transform(spec, image_resize_strategy)
    for part in (spec.parts or (spec,)) if pretrained else ():
        find_weights(part)
    if pretrained and projector == "pretrained-decoder":
        decoder_config(decoder_file(spec))
    return spec


def build(
    vision_backbone: str,
    llm: str,
    projector: str,
    *,
    image_resize_strategy: str = "resize-naive",
    image_size: int | None = None,
    prompt_style: str = "auto",
    pretrained: bool = True,
    dtype: torch.dtype = torch.float32,
    llm_dtype: torch.dtype | None = None,
    llm_later: bool = False,
) -> tuple[PrismaticForConditionalGeneration, PrismaticProcessor]:
    """A new VLM and its processor: pretrained backbone and LLM, new projector.

    Args:
        vision_backbone: registered id, `timm:<timm id>`, or a run of recipes/align.py.
        llm: registered id, Hugging Face id or local folder.
        projector: exact name.
        image_resize_strategy: "resize-naive", "resize-crop" or "letterbox".
        image_size: side of the input image in pixels; the backbone's own if None.
        prompt_style: name, file or text of a chat template; "auto" takes the LLM's.
        pretrained: False gives new weights everywhere.
        dtype: of all weights.
        llm_dtype: of the LLM's, if it is another.
        llm_later: give the LLM placeholders for weights, to shard it first (see `prismatic.models.deferred_weights`).

    Raises:
        ValueError: the parts do not fit, or weights cannot be found.
    """
    spec = check_parts(vision_backbone, llm, projector, image_resize_strategy, image_size, pretrained, prompt_style)
    tokenizer = load_tokenizer(llm, prompt_style)
    with torch.random.fork_rng(devices=[], enabled=pretrained):  # however it is read, a new projector is drawn the same
        if llm_later:
            language_model = placeholder_llm(llm, len(tokenizer), dtype)
        else:
            language_model = load_llm(llm, pretrained=pretrained, dtype=llm_dtype or dtype)
            grow_vocabulary(language_model, len(tokenizer))
    backbone = create_backbone(
        vision_backbone,
        pretrained=pretrained,
        image_resize_strategy=image_resize_strategy,
        image_size=image_size,
        tail_blocks=TAIL_BLOCKS if projector == "truncated" else 0,
    )
    decoder = decoder_file(spec) if pretrained and projector == "pretrained-decoder" else None
    config = PrismaticConfig(
        text_config=language_model.config,
        vision_config=backbone.spec.to_dict(),
        image_size=backbone.image_size,
        image_resize_strategy=image_resize_strategy,
        projector=projector,
        projector_config=decoder_config(decoder) if decoder else None,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    model = PrismaticForConditionalGeneration(config, llm=language_model, vision_backbone=backbone)
    for part in (model,) if llm_dtype is None else (model.vision_backbone, model.projector):
        part.to(dtype)
    if decoder:
        model.projector.load_decoder(load_file(decoder))
    if not (llm_later or next(language_model.parameters()).is_meta):
        check_causal(model)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    stop_where_answers_end(model, tokenizer, language_model.generation_config.eos_token_id)
    return model, build_processor(model, tokenizer)


def build_processor(model: PrismaticForConditionalGeneration, tokenizer) -> PrismaticProcessor:
    """The processor that prepares inputs for `model`."""
    images = PrismaticImageProcessor(
        vision_config=model.config.vision_config,
        image_resize_strategy=model.config.image_resize_strategy,
        image_size=model.config.image_size,
    )
    return PrismaticProcessor(images, tokenizer, num_image_tokens=model.vision_backbone.num_tokens)


def meta_config(vision_backbone: str, llm: str, projector: str, **settings) -> PrismaticConfig:
    """The configuration of a named model without its tokenizer: the vocabulary has `<PAD>` and `<image>` added.

    For planning on the meta device, where nothing may be downloaded.
    """
    text = llm_config(llm)
    image_token_id = text.vocab_size + 1
    text.vocab_size = -(-(text.vocab_size + 2) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    spec = check_parts(vision_backbone, llm, projector, pretrained=False, **settings)
    return PrismaticConfig(
        text_config=text, vision_config=spec.to_dict(), projector=projector, image_token_id=image_token_id, **settings
    )
