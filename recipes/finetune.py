"""Finetunes a vision-language model: backbone, projector and LLM in, a Hugging Face model out.

`accelerate launch recipes/finetune.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

import sys
import time

from recipes.settings import FinetuneConfig, parse_finetune


def main(config: FinetuneConfig) -> dict:
    """Runs the finetune and gives the content of `summary.json`."""
    from functools import partial
    from pathlib import Path

    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader

    from eval.held_out import accuracy, generate_answers, prior_accuracy, read_items
    from prismatic.data import batching
    from prismatic.data.sources import ConversationDataset
    from prismatic.miniature.writers import miniature_llava
    from prismatic.models.attention import SEGMENTED
    from prismatic.models.load import add_lora, check_parts, save_parts, start
    from prismatic.models.processing import encode_row
    from prismatic.training import loop, optim, report
    from prismatic.training.checkpoint import open_run, save_model, write_json
    from prismatic.training.tracking import metrics_log
    from vision_backbones import import_plugins

    started = time.perf_counter()
    loop.use_all_cores()
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=config.trackers or None,
        project_dir=config.run_root,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    world, rank, data = accelerator.num_processes, accelerator.process_index, config.data

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    parts = {k: getattr(config, k) for k in ("vision_backbone", "llm", "projector", "image_resize_strategy", "image_size")}
    if config.init_from:
        parts = {"init_from": config.init_from}
    else:
        check_parts(**parts)
    accumulation = batching.accumulation_steps(config.global_batch_size, world, config.per_device_batch_size)
    if data.annotations.startswith("miniature:"):
        folder = miniature_llava(int(data.annotations.removeprefix("miniature:")))
        data.annotations, data.held_out = str(folder / "train.json"), data.held_out or str(folder / "held_out.json")
    root = data.image_root or Path(data.annotations).parent
    source = ConversationDataset(Path(data.annotations), root, exif_rotate=data.exif_rotation)
    held_out = ConversationDataset(Path(data.held_out), data.image_root or Path(data.held_out).parent) if data.held_out else None
    run_dir = open_run(config, accelerator)

    # The model, what of it is trained, and the optimizer.
    set_seed(config.seed)
    model, processor = start(**parts)
    optim.set_trainable(model, config.stage)
    if config.stage == "lora":
        model = add_lora(model, **vars(config.lora))
    if config.precision == "bf16":
        optim.halve_frozen(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if data.packing:
        model.set_attn_implementation({"text_config": SEGMENTED})
    model.to(accelerator.device)
    report.print_parts(accelerator, config, model)
    optimizer = torch.optim.AdamW(
        optim.parameter_groups(model.named_parameters(), config.weight_decay),
        lr=config.learning_rate,
        betas=tuple(config.betas),
    )

    # The data: which rows every step sees, and how they become batches.
    def order(epoch: int) -> list[list[int]]:
        size, seed = config.global_batch_size, config.seed
        if data.sampler == "shuffle":
            rows = batching.shuffle_indices(len(source), size, seed, epoch)
        else:
            rows = batching.split_modality_indices(source.is_multimodal, source.word_counts, size, world, seed, epoch)
        return batching.micro_batches(rows, rank, world, size, config.per_device_batch_size)

    examples = batching.TrainingExamples(
        source,
        partial(encode_row, processor=processor, max_length=config.max_length, stage=config.stage),
        processor.image_processor.transform,
        data.on_bad_image,
    )
    collate = batching.collate_packed if data.packing else partial(
        batching.collate_padded, pad_token_id=processor.tokenizer.pad_token_id
    )  # fmt: skip
    steps = config.epochs * (len(order(0)) // accumulation)
    steps = min(steps, config.max_steps or steps)
    epochs = (
        DataLoader(
            examples,
            batch_sampler=order(epoch),
            collate_fn=collate,
            num_workers=data.workers,
            pin_memory=accelerator.device.type != "cpu",
            generator=torch.Generator().manual_seed(config.seed),
        )
        for epoch in range(config.epochs)
    )

    # Before, training, after.
    items = read_items(held_out, data.held_out_limit) if held_out and accelerator.is_main_process else []
    before = generate_answers(model, processor, held_out, items)
    log = metrics_log(accelerator, config, run_dir)
    training_started = time.perf_counter()

    def end_of_epoch(epoch: int) -> None:
        if accelerator.is_main_process:
            folder = save_model(model, processor, run_dir / "checkpoints" / f"epoch-{epoch + 1:02d}")
            if config.stage == "lora":
                save_parts(folder, parts)
        accelerator.wait_for_everyone()

    loop.fit(
        accelerator,
        accelerator.prepare_model(model) if world > 1 else model,
        optimizer,
        epochs=epochs,
        total_steps=steps,
        accumulation=accumulation,
        rate_at=partial(
            optim.learning_rate,
            peak=config.learning_rate,
            total_steps=steps,
            warmup_steps=int(steps * config.warmup_ratio),
            minimum=config.min_learning_rate,
        ),
        max_grad_norm=config.max_grad_norm,
        log=log,
        end_of_epoch=end_of_epoch,
        matmul_peak=loop.matmul_peak(accelerator.device, torch.bfloat16 if config.precision == "bf16" else torch.float32),
    )
    training_seconds = time.perf_counter() - training_started
    after = generate_answers(model, processor, held_out, items)
    accelerator.end_training()

    summary = report.summarise(run_dir, training_seconds, time.perf_counter() - started)
    if items:
        summary["held_out_accuracy_before"] = accuracy(before, items)
        summary["held_out_accuracy_after"] = accuracy(after, items)
        summary["prior_baseline_accuracy"] = prior_accuracy(Path(data.held_out), items)
        summary["held_out_questions"] = len(items)
    if accelerator.is_main_process:
        report.write_samples(run_dir, items, before, after)
        write_json(run_dir / "summary.json", summary)
        report.print_summary(run_dir, summary, items, before, after)
    return summary


if __name__ == "__main__":
    try:
        main(parse_finetune(sys.argv[1:]))
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
