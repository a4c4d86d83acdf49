"""The VLM: vision backbone, projector and LLM as one Hugging Face model."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from prismatic.models import self_check
from prismatic.models.attention import SEGMENTED
from prismatic.models.configuration import PrismaticConfig
from prismatic.models.deferred_weights import is_placeholder
from prismatic.models.projectors import TAIL_BLOCKS, build_projector, check_projector
from vision_backbones import BackboneSpec, create_backbone


class PrismaticForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A vision-language model with image placeholders in its token sequence.

    `input_ids` hold `image_token_id` wherever a patch embedding goes; `pixel_values` hold the images of the rows that
    have one, in order. Text-only rows, padding, packing, KV caches and labels then need no case of their own.

    Args:
        config: what to build.
        llm: a ready LLM to take over; built from the config (new weights) when None.
        vision_backbone: likewise a ready backbone.
    """

    config_class = PrismaticConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PrismaticConfig, llm: PreTrainedModel | None = None, vision_backbone=None):
        super().__init__(config)
        spec = BackboneSpec.from_dict(config.vision_config)
        check_projector(config.projector, fused=bool(spec.parts), aligned=spec.aligned)
        self.vision_backbone = vision_backbone or create_backbone(
            spec,
            pretrained=False,
            image_resize_strategy=config.image_resize_strategy,
            image_size=config.image_size,
            tail_blocks=TAIL_BLOCKS if config.projector == "truncated" else 0,
        )
        self.llm = llm or AutoModelForCausalLM.from_config(config.text_config)
        block = None if spec.parts else self.vision_backbone.vit.blocks[0]
        self.projector = build_projector(
            config.projector,
            self.vision_backbone.embed_dim,
            config.text_config.hidden_size,
            num_tokens=self.vision_backbone.num_tokens,
            num_prefix_tokens=self.vision_backbone.num_prefix_tokens,
            num_heads=block.attn.num_heads if block else None,
            act_layer=type(block.mlp.act) if block else None,
            tail=self.vision_backbone.pop_tail() if config.projector == "truncated" else None,
            options=config.projector_config,
        )
        self.post_init()

    def _init_weights(self, module):
        # Our parts initialise themselves on construction; only buffers that no checkpoint holds are to be rebuilt.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

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
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value):
        """Replaces the LLM's token embedding."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self):
        """The LLM's head."""
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings):
        """Replaces the LLM's head."""
        self.llm.set_output_embeddings(new_embeddings)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected patch embeddings `[M, num_tokens, hidden_size]` of images `[M, 3 * parts, H, W]`."""
        features = self.vision_backbone(pixel_values.to(self._dtype_of(self.vision_backbone)))
        return self.projector(features.to(self._dtype_of(self.projector)))

    def _dtype_of(self, part: torch.nn.Module) -> torch.dtype:
        """Of its first floating-point parameter: quantised ones are integers, in which nothing is computed."""
        embedding = self.get_input_embeddings().weight.dtype
        return next((p.dtype for p in part.parameters() if p.is_floating_point()), embedding)

    def _projector_alone_trains(self) -> bool:
        if not (self.training and torch.is_grad_enabled()) or any(p.requires_grad for p in self.llm.parameters()):
            return False
        return any(p.requires_grad for p in self.projector.parameters())

    def _idle_projector(self) -> torch.Tensor:
        """0, by way of the projector: rows without an image else have no gradient, and sharded processes wait."""
        side, channels = self.vision_backbone.image_size, 3 * max(1, len(self.vision_backbone.spec.parts))
        weight = next(self.projector.parameters())
        blank = torch.zeros(1, channels, side, side, device=weight.device)
        return self.get_image_features(blank).sum().to(self.get_input_embeddings().weight.dtype) * 0.0

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
        patches = self.get_image_features(pixel_values).flatten(0, 1).to(embeddings.dtype)
        if image_positions is None:
            image_positions = (input_ids == self.config.image_token_id).flatten().nonzero().flatten()
        if len(image_positions) != len(patches):
            raise ValueError(
                f"{len(image_positions)} image placeholders in input_ids, but {len(pixel_values)} images give "
                f"{len(patches)} patch embeddings: the processor writes {self.vision_backbone.num_tokens} an image"
            )
        return embeddings.flatten(0, 1).index_copy(0, image_positions, patches).view_as(embeddings)

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

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in any Hugging Face model, except that a missing, unexpected or mismatched key raises ValueError."""
        # Mismatched shapes are let through to be listed with the rest.
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(*args, **options)
        problems = {
            k: sorted(map(str, info.get(k) or [])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
        }
        if any(problems.values()):
            listed = "; ".join(
                f"{k.replace('_', ' ')}: {', '.join(v[:5])} ({len(v)})" for k, v in problems.items() if v
            )
            raise ValueError(f"the checkpoint {args[0] if args else ''} does not hold this model: {listed}")
        return (model, info) if output_loading_info else model


AutoModelForImageTextToText.register(PrismaticConfig, PrismaticForConditionalGeneration)
