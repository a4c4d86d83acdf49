"""The vision-language model of a finetune, from its settings to what the loop trains."""

from functools import partial

import torch
from accelerate import Accelerator

from prismatic.data.samplers import accumulation_steps
from prismatic.models import stages
from prismatic.models.attention import SEGMENTED
from prismatic.models.build import check_parts
from prismatic.models.deferred_weights import fill, is_placeholder, place, weight_files
from prismatic.models.load import start_stage
from prismatic.models.lora import lasting
from prismatic.models.quantize import quantize
from prismatic.models.self_check import check_context, check_packing
from prismatic.text.speech import style_of
from prismatic.training import console, sharding
from vision_backbones import import_plugins


def check(config, parts: dict, world: int) -> dict:
    """Checks what of a `FinetuneConfig` can be checked before any weights are read.

    Returns:
        The parts, with paths that hold from any working directory.

    Raises:
        ValueError: the parts do not fit together, or the processes cannot share the batch or the model.
    """
    import_plugins(config.plugins)
    parts = lasting(parts)
    if not config.init_from:
        check_parts(**parts)
    accumulation_steps(config.global_batch_size, world, config.per_device_batch_size)
    sharding.check_sharding(config.sharding, world)
    if config.quantize and sharding.shards(config.sharding, world):
        raise ValueError("--quantize does not shard the LLM: set --sharding none, or leave it out")
    return parts


def build(config, parts: dict, source, accelerator: Accelerator, *, answers_first: bool):
    """The model of a stage, with what the stage does not train frozen, and its processor; prints its parts.

    Args:
        config: a `FinetuneConfig`.
        parts: from `check`.
        source: the `ConversationSource` that it is trained on.
        accelerator: of the run.
        answers_first: the model answers questions before it is sharded. Otherwise its LLM may get placeholders, which
            `distribute` fills: a process then reads its own part alone.
    """
    sharded = sharding.shards(config.sharding, accelerator.num_processes)
    deferred = sharded and not (answers_first or config.init_from) and weight_files(config.llm)
    options = {"llm_later": bool(deferred), "base": config.base}
    if config.quantize:
        options["llm_dtype"] = torch.bfloat16 if config.precision == "bf16" else None
        options["quantized"] = partial(quantize, kind=config.quantize, accelerator=accelerator)
    model, processor = start_stage(parts, config.stage, vars(config.lora), **options)
    if config.precision == "bf16":
        stages.halve_frozen(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    place(model, accelerator.device)
    if config.data.packing:
        with accelerator.autocast():  # rows are tried, as they are computed
            model.set_attn_implementation({"text_config": SEGMENTED})
    _describe(config, model, processor, source, accelerator)
    return model, processor


def _describe(config, model, processor, source, accelerator: Accelerator) -> None:
    """Prints what is trained, and what of the data deserves a note."""
    title = f"{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}"
    console.print_parts(accelerator, title, stages.trained_and_frozen(model))
    image_tokens = int(source.image_counts.max()) * processor.num_image_tokens
    if note := check_context(sharding.base_model(model), config.max_length, image_tokens):
        accelerator.print(f"note: {note}")
    if source.stray_rows:
        accelerator.print(
            f'note: {source.stray_rows:,} rows contain "<image>" as a word, which is removed: '
            "python -m prismatic.data.verify counts them"
        )
    accelerator.print(f"prompt style: {style_of(processor.tokenizer)}")


def distribute(config, model, accelerator: Accelerator):
    """What the loop trains: the model sharded, replicated or as it is; placeholders of its LLM are filled."""
    llm = sharding.base_model(model).llm
    deferred = any(map(is_placeholder, llm.parameters()))
    trained = sharding.shard(model, config.sharding, accelerator, getattr(torch, config.reduce_dtype))
    if deferred:
        fill(llm, config.llm, accelerator.device)
        if config.data.packing:
            with sharding.computes_in(trained, accelerator):
                check_packing(sharding.base_model(model), trained)
    return trained
