"""Finetunes a vision-language model: backbone, projector and LLM in, a Hugging Face model out.

`accelerate launch recipes/finetune.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

import time

from recipes import command, evaluate
from recipes.eval_settings import EvaluateConfig
from recipes.settings import MAY_CHANGE, PARTS, FinetuneConfig, parse_finetune


def main(config: FinetuneConfig) -> dict:
    """Runs the finetune and gives the content of `summary.json` (on the main process)."""
    import torch
    from accelerate.utils import set_seed

    from eval import runner
    from eval.held_out import generate_answers, read_items, scores, write_samples
    from prismatic.data.batching import accumulation_steps
    from prismatic.data.rows import RowBatches
    from prismatic.data.sources import open_data
    from prismatic.models.attention import SEGMENTED
    from prismatic.models.load import check_parts, load, save_parts, start_stage
    from prismatic.models.placeholders import fill, place, weight_files
    from prismatic.training import loop, objective, optim, report, sharding
    from prismatic.training.checkpoint import open_run, save_model, write_json
    from prismatic.training.saving import Checkpoints, resume
    from prismatic.training.tracking import metrics_log
    from vision_backbones import import_plugins

    started = time.perf_counter()
    waits = config.timeout_minutes
    accelerator = loop.launch(config.precision, config.trackers, config.run_root, config.processes, waits)
    world, data = accelerator.num_processes, config.data

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    parts = {"init_from": config.init_from} if config.init_from else {name: getattr(config, name) for name in PARTS}
    if not config.init_from:
        check_parts(**parts)
    accumulation_steps(config.global_batch_size, world, config.per_device_batch_size)
    sharding.check_sharding(config.sharding, world)
    source, held_out = open_data(data)
    if config.eval_tasks:
        eval_root = runner.data_root(config.eval_root)
        runner.read_jobs(config.eval_tasks, eval_root, allow_partial=config.eval_root.startswith("miniature:"))
    may_change = None if config.resume == "never" else MAY_CHANGE
    run_dir = open_run(config, accelerator, f"{config.model or config.vision_backbone}+{config.stage}", may_change)

    # The model, what of it is trained, and the optimizer. Sharded, a process reads its own part of the LLM alone.
    set_seed(config.seed)
    later = sharding.shards(config.sharding, world) and not held_out and not config.init_from
    later = later and weight_files(config.llm) is not None
    model, processor = start_stage(parts, config.stage, vars(config.lora), llm_later=later)
    if config.precision == "bf16":
        optim.halve_frozen(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if data.packing:
        model.set_attn_implementation({"text_config": SEGMENTED})
    place(model, accelerator.device)
    title = f"{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}"
    report.print_parts(accelerator, title, optim.trained_and_frozen(model))
    items = read_items(held_out, data.held_out_limit) if held_out and accelerator.is_main_process else []
    before = generate_answers(model, processor, held_out, items, accelerator=accelerator)
    trained = sharding.shard(model, config.sharding, accelerator, getattr(torch, config.reduce_dtype))
    if later:
        fill(sharding.base_model(model).llm, config.llm, accelerator.device)
    decay = config.weight_decay if config.decay == "matrices" else 0.0
    groups = optim.parameter_groups(model.named_parameters(), decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)

    # The data, and where an interrupted run goes on.
    batches = RowBatches(config, source, processor, accelerator.process_index, world)
    done = resume(config.resume, run_dir, accelerator, model, optimizer, rows=len(source))
    log = metrics_log(accelerator, config, run_dir, done)
    checkpoints = Checkpoints(
        run_dir, accelerator, model, optimizer, every=config.save_every_steps, keep_last=config.keep_last,
        keep_every=config.keep_every, log=log, timeout_minutes=waits,
        about={"parts": parts, "stage": config.stage, "lora": vars(config.lora), "rows": len(source)},
    )  # fmt: skip

    def end_of_epoch(epoch: int, steps_done: int) -> None:
        weights = sharding.full_state(model, adapters=config.stage == "lora")
        if accelerator.is_main_process:
            folder = run_dir / "checkpoints" / f"epoch-{epoch + 1:02d}"
            save_model(model, processor, folder, weights, replace=True)
            if config.stage == "lora":
                save_parts(folder, parts)
        accelerator.wait_for_everyone()

    if done and (done == batches.steps or done % batches.steps_per_epoch == 0):  # it may not have come to this
        end_of_epoch((done - 1) // batches.steps_per_epoch, done)
    loop.fit(
        accelerator,
        trained,
        optimizer,
        objective.TEXT,
        epochs=batches.epochs(done),
        total_steps=batches.steps,
        accumulation=batches.accumulation,
        rate_at=optim.schedule(config, batches.steps),
        max_grad_norm=config.max_grad_norm,
        log=log,
        end_of_epoch=end_of_epoch,
        after_step=checkpoints.after_step,
        before_update=checkpoints.before_update,
        should_stop=checkpoints.should_stop,
        done_steps=done,
        seed=config.seed,
        matmul_peak=loop.matmul_peak(accelerator),
    )
    checkpoints.close()
    model = trained = optimizer = groups = checkpoints = None  # frees what the evaluations need
    after = generate_answers(*load(run_dir), held_out, items, accelerator=accelerator) if items else []
    if config.eval_tasks:
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
    command.run(main, parse_finetune)
