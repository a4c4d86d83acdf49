"""The configuration that rebuilds a VLM with no network."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class PrismaticConfig(PreTrainedConfig):
    """What a Prismatic VLM is made of.

    Args:
        text_config: configuration of the LLM (or its dict, with `model_type`).
        vision_config: `BackboneSpec.to_dict()` of the vision backbone: the whole spec, not its name.
        image_size: side of the input image in pixels; None is the backbone's own.
        image_resize_strategy: "resize-naive", "resize-crop" or "letterbox".
        projector: exact name of the projector.
        projector_config: shape of a decoder that the projector took over; None where the name says it all.
        image_token_id: id of the placeholder that marks one patch embedding in `input_ids`.
        box_frame: what the boxes that it was trained on are fractions of: "image", or "padded-square" (LLaVA's mix
            under letterbox).
    """

    model_type = "prismatic"
    auto_map = {}  # no code comes with a model; trl reads the attribute of every class that transformers lacks
    sub_configs = {"text_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | None = None
    image_size: int | None = None
    image_resize_strategy: str = "resize-naive"
    projector: str = "gelu-mlp"
    projector_config: dict[str, Any] | None = None
    image_token_id: int | None = None
    box_frame: str = "image"

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            text = dict(self.text_config)
            self.text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        if self.text_config is not None:
            kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        own = getattr(self.text_config, "_attn_implementation", None)
        super().__post_init__(**kwargs)
        if own and self.text_config._attn_implementation is None:
            # A composite configuration clears its parts' choice; without one, some LLMs apply no causal mask.
            self.text_config._attn_implementation_internal = own


AutoConfig.register(PrismaticConfig.model_type, PrismaticConfig)
