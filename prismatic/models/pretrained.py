"""What the VLM has in common with and without its head: how it is read from a folder, and what it says it can do."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from transformers import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

from prismatic.checkpoints.epoch import PARTS_FILE
from prismatic.checkpoints.old_names import KEY_MAPPING
from prismatic.models.configuration import PrismaticConfig


class PrismaticPreTrainedModel(PreTrainedModel):
    """The base of `PrismaticModel` and `PrismaticForConditionalGeneration`."""

    config_class = PrismaticConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _of_parts: ClassVar[Callable]  # what `prismatic.models.load` puts together

    def _init_weights(self, module):
        # Our parts initialise themselves on construction; only buffers that no checkpoint holds are to be rebuilt.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in any Hugging Face model, except that a missing, unexpected or mismatched key raises ValueError.

        A folder that names the parts of a model in the place of weights (what adapters adapt) gives the model of these.
        A quantization config that names no modules to leave alone quantises the LLM but its head.
        """
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        folder = Path(source or "", kwargs.get("subfolder") or "")
        if (folder / PARTS_FILE).is_file() and not (folder / "adapter_config.json").is_file():
            model = cls._of_parts(folder, **{name: value for name, value in kwargs.items() if name != "subfolder"})
            model = model if hasattr(model, cls.base_model_prefix) == hasattr(cls, "parts") else model.model
            return (model, {}) if output_loading_info else model
        # Mismatched shapes are let through to be listed with the rest.
        options = {**kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        options["key_mapping"] = (kwargs.get("key_mapping") or {}) | KEY_MAPPING
        if kwargs.get("quantization_config") is not None:
            options["quantization_config"] = cls._llm_alone(kwargs["quantization_config"])
        model, info = super().from_pretrained(*args, **options)
        problems = {
            k: sorted(map(str, info.get(k) or [])) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
        }
        if any(problems.values()):
            listed = "; ".join(
                f"{k.replace('_', ' ')}: {', '.join(v[:5])} ({len(v)})" for k, v in problems.items() if v
            )
            raise ValueError(f"the checkpoint {args[0] if args else ''} does not hold this model: {listed}")
        # Else transformers would write old names again.
        used = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [c for c in used if c._original_source_patterns[0] not in KEY_MAPPING]
        return (model, info) if output_loading_info else model

    @classmethod
    def _llm_alone(cls, config):
        """A quantization config that leaves all but the LLM alone, unless it names modules to leave alone itself."""
        if isinstance(config, dict):
            config = AutoQuantizationConfig.from_dict(config)
        config, before = copy.deepcopy(config), "model." if hasattr(cls, "parts") else ""
        for skipped in ("llm_int8_skip_modules", "modules_to_not_convert"):  # bitsandbytes', and that of others
            if getattr(config, skipped, ...) is None:
                setattr(config, skipped, [f"{before}vision_backbone", f"{before}projector", "lm_head"])
        return config
