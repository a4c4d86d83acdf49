"""Finetunes a vision-language model: backbone, projector and LLM in, a Hugging Face model out.

`accelerate launch recipes/finetune.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

import sys
import time

from recipes import evaluate
from recipes.eval_settings import EvaluateConfig
from recipes.settings import FinetuneConfig, parse_finetune

PARTS = ("vision_backbone", "llm", "projector", "image_resize_strategy", "image_size")


def main(config: FinetuneConfig) -> dict:
    """Runs the finetune and gives the content of `summary.json` (on the main process)."""
    from functools import partial

    import torch
    from accelerate.utils import set_seed

    from eval import runner
    from eval.held_out import generate_answers, read_items, scores, write_samples
    from prismatic.data import batching
    from prismatic.data.sources import open_data
    from prismatic.models.attention import SEGMENTED
    from prismatic.models.load import add_lora, check_parts, save_parts, start
    from prismatic.models.processing import encode_row
    from prismatic.training import loop, objective, optim, report
    from prismatic.training.checkpoint import open_run, save_model, write_json
    from prismatic.training.tracking import metrics_log
    from vision_backbones import import_plugins

    started = time.perf_counter()
    accelerator = loop.launch(config.precision, config.trackers, config.run_root)
    world, rank, data = accelerator.num_processes, accelerator.process_index, config.data
    size, per_device = config.global_batch_size, config.per_device_batch_size

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    parts = {"init_from": config.init_from} if config.init_from else {name: getattr(config, name) for name in PARTS}
    if not config.init_from:
        check_parts(**parts)
    accumulation = batching.accumulation_steps(size, world, per_device)
    source, held_out = open_data(data)
    if config.eval_tasks:
        eval_root = runner.data_root(config.eval_root)
        runner.read_jobs(config.eval_tasks, eval_root, allow_partial=config.eval_root.startswith("miniature:"))
    run_dir = open_run(config, accelerator, f"{config.model or config.vision_backbone}+{config.stage}")

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
    title = f"{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}"
    report.print_parts(accelerator, title, optim.trained_and_frozen(model))
    groups = optim.parameter_groups(model.named_parameters(), config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)

    # The data: which rows every step sees, and how they become batches.
    def plan(epoch: int) -> list[list[int]]:
        if data.sampler == "shuffle":
            rows = batching.shuffle_indices(len(source), size, config.seed, epoch)
        else:
            kinds, lengths = source.is_multimodal, source.word_counts
            rows = batching.split_modality_indices(kinds, lengths, size, world, config.seed, epoch)
        return batching.micro_batches(rows, rank, world, size, per_device)

    encode = partial(encode_row, processor=processor, max_length=config.max_length, stage=config.stage)
    examples = batching.TrainingExamples(source, encode, processor.image_processor.transform, data.on_bad_image)
    padded = partial(batching.collate_padded, pad_token_id=processor.tokenizer.pad_token_id)
    collate = batching.collate_packed if data.packing else padded
    steps = config.epochs * (len(plan(0)) // accumulation)
    steps = min(steps, config.max_steps or steps)

    # Before, training, after.
    items = read_items(held_out, data.held_out_limit) if held_out and accelerator.is_main_process else []
    with accelerator.autocast():
        before = generate_answers(model, processor, held_out, items)

    def end_of_epoch(epoch: int, steps_done: int) -> None:
        if accelerator.is_main_process:
            folder = save_model(model, processor, run_dir / "checkpoints" / f"epoch-{epoch + 1:02d}")
            if config.stage == "lora":
                save_parts(folder, parts)
        accelerator.wait_for_everyone()

    loop.fit(
        accelerator,
        accelerator.prepare_model(model) if world > 1 else model,
        optimizer,
        objective.TEXT,
        epochs=batching.epoch_loaders(lambda epoch: examples, collate, plan, config.epochs, data.workers, config.seed),
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
        log=metrics_log(accelerator, config, run_dir),
        end_of_epoch=end_of_epoch,
        seed=config.seed,
        matmul_peak=loop.matmul_peak(accelerator),
    )
    with accelerator.autocast():
        after = generate_answers(model, processor, held_out, items)
    if config.eval_tasks:
        del model, optimizer, groups
        evaluation = EvaluateConfig(
            model=str(run_dir), tasks=config.eval_tasks, data_root=config.eval_root, precision=config.precision,
            allow_partial=config.eval_root.startswith("miniature:"), plugins=config.plugins,
        )  # fmt: skip
        results = evaluate.main(evaluation, accelerator)
    accelerator.end_training()

    if not accelerator.is_main_process:
        return {}
    summary = report.summarise(run_dir, time.perf_counter() - started)
    if items:
        summary |= scores(data.held_out, items, before, after)
        write_samples(run_dir, held_out, items, before, after)
        report.print_samples(items, before, after)
    if config.eval_tasks:
        summary |= {key: task["metrics"][task["main"]] for key, task in results["tasks"].items()}
    write_json(run_dir / "summary.json", summary)
    report.print_summary(run_dir, summary, f"python -c \"import prismatic; prismatic.load('{run_dir}')\"")
    return summary


if __name__ == "__main__":
    try:
        main(parse_finetune(sys.argv[1:]))
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
