"""Finetunes a vision-language model: backbone, projector and LLM in, a Hugging Face model out.

`accelerate launch recipes/finetune.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

import time

from prismatic.checkpoints.lock import releases
from recipes import command, evaluate
from recipes.config.evaluate import EvaluateConfig, after_finetune
from recipes.config.finetune import MAY_CHANGE, PARTS, FinetuneConfig, parse_finetune


@releases
def main(config: FinetuneConfig) -> dict:
    """Runs the finetune and gives the content of `summary.json` (on the main process)."""
    from functools import partial

    import torch
    from accelerate.utils import set_seed
    from safetensors import SafetensorError
    from tqdm import tqdm

    from eval import records, runner
    from prismatic.checkpoints.epoch import TRAINED, epoch_folder, has_epoch, save_model
    from prismatic.checkpoints.run_folder import finished_run, open_run, slower
    from prismatic.checkpoints.writer import AsyncCheckpointer, resume
    from prismatic.data.batching import accumulation_steps
    from prismatic.data.conversation_dataset import open_data
    from prismatic.data.fingerprints import of_conversations
    from prismatic.data.rows import FinetuneBatches
    from prismatic.models.attention import SEGMENTED
    from prismatic.models.deferred_weights import fill, place, weight_files
    from prismatic.models.load import check_parts, load, start, start_stage
    from prismatic.models.lora import PARTS_FILE, lasting
    from prismatic.models.quantize import quantize
    from prismatic.models.self_check import check_context, check_packing
    from prismatic.text.speech import style_of
    from prismatic.training import console as report
    from prismatic.training import loop, optim, sharding
    from prismatic.training import losses as objective
    from prismatic.training.held_out import generate_answers, read_items, scores, write_samples
    from prismatic.training.processes import on_main
    from prismatic.training.tracking import metrics_log
    from vision_backbones import import_plugins
    from vision_backbones.files import write_json

    started = time.perf_counter()
    waits = config.timeout_minutes
    accelerator = loop.launch(config.precision, config.trackers, config.run_root, config.processes, waits)
    world, data = accelerator.num_processes, config.data

    # What can fail early fails here, before any weights are read.
    import_plugins(config.plugins)
    named = ("init_from", "prompt_style") if config.init_from else PARTS
    parts = lasting({name: getattr(config, name) for name in named})
    if not config.init_from:
        check_parts(**parts)
    accumulation_steps(config.global_batch_size, world, config.per_device_batch_size)
    sharding.check_sharding(config.sharding, world)
    if config.quantize and sharding.shards(config.sharding, world):
        raise ValueError("--quantize does not shard the LLM: set --sharding none, or leave it out")
    source, held_out = open_data(data)
    if config.eval_tasks:
        eval_root = runner.data_root(config.eval_root)
        runner.read_jobs(config.eval_tasks, eval_root, allow_partial=config.eval_root.startswith("miniature:"))
    name = f"{config.model or config.vision_backbone}+{config.stage}"
    run_dir = open_run(config, accelerator, name, MAY_CHANGE, anew=config.resume == "never")
    if summary := finished_run(run_dir, accelerator, needed=config.eval_tasks):
        return summary

    # The model, what of it is trained, and the optimizer. Sharded, a process reads its own part of the LLM alone.
    set_seed(config.seed)
    later = sharding.shards(config.sharding, world) and not (held_out or config.init_from) and weight_files(config.llm)
    options = {"llm_later": bool(later), "base": config.base}
    if config.quantize:
        options["llm_dtype"] = torch.bfloat16 if config.precision == "bf16" else None
        options["quantized"] = partial(quantize, kind=config.quantize, accelerator=accelerator)
    model, processor = start_stage(parts, config.stage, vars(config.lora), **options)
    if config.precision == "bf16":
        optim.halve_frozen(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable()
    place(model, accelerator.device)
    if data.packing:
        with accelerator.autocast():  # rows are tried, as they are computed
            model.set_attn_implementation({"text_config": SEGMENTED})
    title = f"{config.vision_backbone} -> {config.projector} -> {config.llm}, stage {config.stage}"
    report.print_parts(accelerator, title, optim.trained_and_frozen(model))
    images = int(source.image_counts.max()) * processor.num_image_tokens
    if note := check_context(sharding.base_model(model), config.max_length, images):
        accelerator.print(f"note: {note}")
    if source.stray_rows:
        accelerator.print(
            f'note: {source.stray_rows:,} rows say "<image>" as a word, which is taken out: '
            "python -m prismatic.data.verify counts them"
        )
    accelerator.print(f"prompt style: {style_of(processor.tokenizer)}")
    items = read_items(held_out, data.held_out_limit) if held_out and accelerator.is_main_process else []
    before = generate_answers(model, processor, held_out, items, accelerator=accelerator)
    trained = sharding.shard(model, config.sharding, accelerator, getattr(torch, config.reduce_dtype))
    if later:
        fill(sharding.base_model(model).llm, config.llm, accelerator.device)
        if data.packing:
            with sharding.computes_in(trained, accelerator):
                check_packing(sharding.base_model(model), trained)
    groups = optim.parameter_groups(model.named_parameters(), config.weight_decay * (config.decay == "matrices"))
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=tuple(config.betas), fused=True)

    # The data, and where an interrupted run goes on.
    fingerprint = on_main(accelerator, lambda: of_conversations(source, processor.tokenizer))
    batches = FinetuneBatches(config, source, processor, accelerator.process_index, world)
    passes = batches.steps / batches.steps_per_epoch
    accelerator.print(f"{batches.steps:,} steps, {passes:.3g} passes over {len(source):,} rows")
    done = resume(config.resume, run_dir, accelerator, model, optimizer, data=fingerprint)
    log = metrics_log(accelerator, config, run_dir, done)
    checkpoints = AsyncCheckpointer(
        run_dir, accelerator, model, optimizer, every=config.save_every_steps, last=batches.steps,
        keep_last=config.keep_last,
        keep_every=config.keep_every, log=log, timeout_minutes=waits,
        about={"parts": parts, "stage": config.stage, "lora": vars(config.lora), "data": fingerprint},
    )  # fmt: skip

    def end_of_epoch(epoch: int, steps_done: int) -> None:
        if done and steps_done == done and has_epoch(run_dir, epoch, steps_done, accelerator):
            return
        sharding.check_finite(model, accelerator, steps_done, slower(run_dir))
        weights = sharding.full_state(model, adapters=config.stage == "lora")
        if accelerator.is_main_process:
            saved = model
            if config.quantize and config.stage == "align":  # the LLM as it was
                saved, _ = start(**parts, base=config.base)
                saved.projector.load_state_dict(model.projector.state_dict())
            about = {TRAINED: {"step": steps_done, "epoch": epoch + 1}}
            about |= {PARTS_FILE: parts} if config.stage == "lora" else {}
            try:
                save_model(saved, processor, epoch_folder(run_dir, epoch), weights, replace=True, about=about)
            except (OSError, SafetensorError) as error:
                if steps_done == batches.steps:  # the same command saves it once there is room
                    raise
                tqdm.write(f"error: the model of epoch {epoch + 1} could not be written: {error}. Training goes on.")
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
        remedy=slower(run_dir),
    )
    checkpoints.close()
    answering = (model, processor) if config.quantize else None  # anew it might be larger than the memory
    model = trained = optimizer = groups = checkpoints = None  # frees what the evaluations need
    if items:
        answering = answering or load(run_dir, base=config.base)
        after = generate_answers(*answering, held_out, items, accelerator=accelerator)
    answering, tasks = None, {}
    if config.eval_tasks:
        tasks = evaluate.main(after_finetune(config, run_dir), accelerator).get("tasks", {})
    accelerator.end_training()

    if not accelerator.is_main_process:
        return {}
    summary = report.summarise(run_dir, time.perf_counter() - started, batches.steps_per_epoch)
    summary["prompt_style"] = style_of(processor.tokenizer)
    if items:
        summary |= scores(data.held_out, items, before, after)
        write_samples(run_dir, held_out, items, before, after)
        report.print_samples(items, before, after)
    summary |= {key: task["metrics"][task["main"]] for key, task in tasks.items()}
    write_json(run_dir / "summary.json", summary)
    report.print_summary(run_dir, summary, f"python -c \"import prismatic; prismatic.load('{run_dir}')\"")
    records.check_errors(tasks, EvaluateConfig.max_error_share)
    return summary


if __name__ == "__main__":
    command.run(main, parse_finetune)
