"""The VLM: vision backbone, projector and LLM as one Hugging Face model."""

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.utils import can_return_tuple

from prismatic.models import self_check
from prismatic.models.attention import SEGMENTED
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.deferred_weights import is_placeholder
from prismatic.models.pretrained import PrismaticPreTrainedModel
from prismatic.models.projectors import TAIL_BLOCKS, build_projector, check_projector
from vision_backbones import BackboneSpec, create_backbone


class PrismaticModel(PrismaticPreTrainedModel):
    """Vision backbone, projector and the LLM without its head.

    Args:
        config: what to build.
        language_model: a ready LLM without its head; built from the config (new weights) when None.
        vision_backbone: likewise a ready backbone.
    """

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: PrismaticConfig, language_model: PreTrainedModel | None = None, vision_backbone=None):
        super().__init__(config)
        spec = BackboneSpec.from_dict(config.vision_config)
        check_projector(config.projector, fused=bool(spec.parts), aligned=spec.aligned and spec.reads_last)
        self.vision_backbone = vision_backbone or create_backbone(
            spec,
            pretrained=False,
            image_resize_strategy=config.image_resize_strategy,
            image_size=config.image_size,
            tail_blocks=TAIL_BLOCKS if config.projector == "truncated" else 0,
        )
        self.language_model = language_model or AutoModel.from_config(config.text_config)
        self.projector = build_projector(
            config.projector,
            self.vision_backbone.embed_dim,
            config.text_config.hidden_size,
            num_tokens=self.vision_backbone.num_tokens,
            num_prefix_tokens=self.vision_backbone.num_prefix_tokens,
            num_heads=self.vision_backbone.num_heads,
            act_layer=self.vision_backbone.act_layer,
            tail=self.vision_backbone.pop_tail() if config.projector == "truncated" else None,
            options=config.projector_config,
        )
        self.post_init()

    def get_input_embeddings(self):
        """The LLM's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replaces the LLM's token embedding."""
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Features of images `[M, 3 * parts, H, W]`.

        Returns:
            `last_hidden_state`: those of the backbone, `[M, tokens, embed_dim]`; `pooler_output`: projected patch
            embeddings, `[M, num_tokens, hidden_size]`.
        """
        features = self.vision_backbone(pixel_values.to(self._dtype_of(self.vision_backbone)))
        patches = self.projector(features.to(self._dtype_of(self.projector)))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=patches)

    def _dtype_of(self, part: nn.Module) -> torch.dtype:
        """Of its first floating-point parameter: quantised ones are integers, in which nothing is computed."""
        embedding = self.get_input_embeddings().weight.dtype
        return next((p.dtype for p in part.parameters() if p.is_floating_point()), embedding)

    def _projector_alone_trains(self) -> bool:
        if not (self.training and torch.is_grad_enabled()):
            return False
        if any(p.requires_grad for p in self.language_model.parameters()):
            return False
        return any(p.requires_grad for p in self.projector.parameters())

    def _idle_projector(self) -> torch.Tensor:
        """0, by way of the projector: rows without an image else have no gradient, and sharded processes wait."""
        side, channels = self.vision_backbone.image_size, 3 * max(1, len(self.vision_backbone.spec.parts))
        weight = next(self.projector.parameters())
        patches = self.get_image_features(torch.zeros(1, channels, side, side, device=weight.device)).pooler_output
        return patches.sum().to(self.get_input_embeddings().weight.dtype) * 0.0

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings `[B, T, hidden_size]` with the patch embeddings in the places of the placeholders.

        Args:
            input_ids: `[B, T]`.
            pixel_values: `[M, 3 * parts, H, W]`.
            image_positions: `[M * num_tokens]`, of the placeholders in the flattened `input_ids`; looked for when None.

        Raises:
            ValueError: when the placeholders are not as many as the images' patch embeddings.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return embeddings + self._idle_projector() if self._projector_alone_trains() else embeddings
        patches = self.get_image_features(pixel_values).pooler_output.flatten(0, 1)
        patches = patches.to(embeddings.device, embeddings.dtype)
        if image_positions is None and torch.compiler.is_compiling():  # no shape may depend on what is in input_ids
            marks = input_ids == self.config.image_token_id
            torch._assert_async(marks.sum() == len(patches), "not as many image placeholders as patch embeddings")
            return embeddings.masked_scatter(marks[..., None].expand_as(embeddings), patches)
        if image_positions is None:
            image_positions = (input_ids == self.config.image_token_id).flatten().nonzero().flatten()
        if len(image_positions) != len(patches):
            raise ValueError(
                f"{len(image_positions)} image placeholders in input_ids, but {len(pixel_values)} images give "
                f"{len(patches)} patch embeddings: the processor writes {self.vision_backbone.num_tokens} an image"
            )
        image_positions = image_positions.to(embeddings.device)
        return embeddings.flatten(0, 1).index_copy(0, image_positions, patches).view_as(embeddings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The LLM's `last_hidden_state` `[B, T, hidden_size]`; arguments are those of the whole VLM, without labels."""
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_positions)
        return self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )


class PrismaticForConditionalGeneration(PrismaticPreTrainedModel, GenerationMixin):
    """A vision-language model with image placeholders in its token sequence.

    `input_ids` hold `image_token_id` wherever a patch embedding goes; `pixel_values` hold the images of the rows that
    have one, in order. Text-only rows, padding, packing, KV caches and labels then need no case of their own.

    Args:
        config: what to build.
        llm: a ready LLM to take over; built from the config (new weights) when None.
        vision_backbone: likewise a ready backbone.
    """

    def __init__(self, config: PrismaticConfig, llm: PreTrainedModel | None = None, vision_backbone=None):
        super().__init__(config)
        llm = llm or AutoModelForCausalLM.from_config(config.text_config)
        self.model = PrismaticModel(config, llm.get_submodule(_base_of(llm)), vision_backbone)
        self.take_llm(llm)
        self.post_init()

    @property
    def llm(self) -> PreTrainedModel:
        """The LLM by itself, as a causal language model.

        It shares its modules with this model, where they have other names, and computes what comes after the head:
        scaled or capped logits, losses.
        """
        llm, base = self.__dict__["_llm"]
        if llm._modules[base] is not self.model.language_model:  # replaced, by peft for one
            setattr(llm, base, self.model.language_model)
        if llm.get_output_embeddings() is not self.lm_head:
            llm.set_output_embeddings(self.lm_head)
        if llm.training != self.training:
            llm.training = self.training
        return llm

    def take_llm(self, llm: PreTrainedModel) -> None:
        """Puts a causal language model in the place of the LLM."""
        base, head = _base_of(llm), llm.get_output_embeddings()
        self.model.language_model, self.lm_head = llm.get_submodule(base), head
        places = {base: "model.language_model"}
        for name, module in llm.named_children():
            if module is head:
                places[name] = "lm_head"
            elif name != base:
                self.add_module(name, module)
        tied = getattr(llm, "_tied_weights_keys", None) or {}
        self._tied_weights_keys = {_placed(one, places): _placed(two, places) for one, two in tied.items()}
        self.__dict__["_llm"] = llm, base  # not among the modules, whose names it would double

    @property
    def vision_backbone(self) -> nn.Module:
        """Of images."""
        return self.model.vision_backbone

    @property
    def projector(self) -> nn.Module:
        """From the backbone's features to embeddings of the LLM."""
        return self.model.projector

    def parts(self) -> dict[str, nn.Module]:
        """What a stage trains or freezes."""
        return {"vision_backbone": self.vision_backbone, "projector": self.projector, "llm": self.llm}

    def set_attn_implementation(self, attn_implementation: str | dict, *args, **kwargs) -> None:
        """As in any Hugging Face model; that of packed rows is tried first.

        Raises:
            ValueError: the LLM does not compute in packed rows what it computes otherwise.
        """
        asked = attn_implementation.get("text_config") if isinstance(attn_implementation, dict) else attn_implementation
        if asked == SEGMENTED and not any(p.is_meta or is_placeholder(p) for p in self.llm.parameters()):
            self_check.check_packing(self)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def get_input_embeddings(self):
        """The LLM's token embedding."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replaces the LLM's token embedding."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        """The LLM's head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        """Replaces the LLM's head."""
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """See `PrismaticModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def embed(self, *args, **kwargs) -> torch.Tensor:
        """See `PrismaticModel.embed`."""
        return self.model.embed(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Runs the LLM on text and patches; arguments and result are those of any Hugging Face causal LM.

        Args:
            input_ids: `[B, T]`, with `num_tokens` placeholders per image.
            pixel_values: `[M, 3 * parts, H, W]`, the images of the rows that hold placeholders.
            attention_mask: `[B, T]`, or None.
            position_ids: `[B, T]`; restarting at 0 for packed rows.
            inputs_embeds: `[B, T, hidden_size]` instead of `input_ids`.
            labels: `[B, T]`, -100 where there is nothing to predict.
            logits_to_keep: as in Hugging Face LLMs; a boolean `[B, T]` mask gives logits `[n, vocab]`.
            image_positions: as for `embed`; saves a wait for the device.
            kwargs: passed on to the LLM (KV cache, `use_cache`, `segment_lengths`, `shift_labels`, ...).
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, image_positions)
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


def _base_of(llm: PreTrainedModel) -> str:
    """The name that a causal language model has for what comes before its head."""
    return next(name for name, module in llm.named_children() if isinstance(module, PreTrainedModel))


def _placed(name: str, places: dict[str, str]) -> str:
    """A parameter's name here, by where its LLM's modules are."""
    first, dot, rest = name.partition(".")
    return places.get(first, first) + dot + rest


AutoModel.register(PrismaticConfig, PrismaticModel)
for _auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM):
    _auto.register(PrismaticConfig, PrismaticForConditionalGeneration)
for _names in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
    _names[PrismaticConfig.model_type] = PrismaticForConditionalGeneration.__name__  # where clients look up model types
