"""Finetunes a vision-language model: backbone, projector and LLM in, a Hugging Face model out.

`accelerate launch recipes/finetune.py` alone runs the miniature world on a laptop; `--help` lists every setting.
"""

import time

from prismatic.checkpoints.lock import releases
from recipes import cli
from recipes.config.evaluate import EvaluateConfig, after_finetune
from recipes.config.finetune import MAY_CHANGE, FinetuneConfig, parse_finetune, parts_of


@releases
def main(config: FinetuneConfig) -> dict:
    """Runs the finetune and returns the content of `summary.json` (on the main process)."""
    from accelerate.utils import set_seed

    from eval import evaluation
    from prismatic.checkpoints import run_folder, writer
    from prismatic.data import conversation_dataset, fingerprints, rows
    from prismatic.models.load import load
    from prismatic.training import epoch_models, held_out, loop, losses, optim, processes, tracking, vlm

    started = time.perf_counter()
    accelerator = loop.launch(
        config.precision, config.trackers, config.run_root, config.processes, config.timeout_minutes
    )

    # What can fail early fails here, before any weights are read.
    parts = vlm.check(config, parts_of(config), accelerator.num_processes)
    source, questions = conversation_dataset.open_data(config.data, config.seed)
    if config.eval_tasks:
        evaluation.read_jobs(after_finetune(config))
    name, needed = f"{config.model or config.vision_backbone}+{config.stage}", config.eval_tasks
    run_dir = run_folder.open_run(config, accelerator, name, MAY_CHANGE, anew=config.resume == "never", needed=needed)
    if summary := run_folder.finished_run(run_dir, accelerator, needed=needed):
        return summary

    # The model of the stage; held-out questions are answered before it is sharded.
    set_seed(config.seed)
    model, processor = vlm.build(config, parts, source, accelerator, answers_first=bool(questions))
    asked = held_out.HeldOut(questions, config.data.held_out_limit, accelerator)
    asked.answer(model, processor)
    trained = vlm.distribute(config, model, accelerator)
    optimizer = optim.adamw(config, model)

    # The data, and where an interrupted run resumes.
    data = processes.on_main(accelerator, lambda: fingerprints.of_conversations(source, processor.tokenizer))
    batches = rows.batches_of(config, source, processor, accelerator.process_index, accelerator.num_processes)
    accelerator.print(batches.describe())
    done = writer.resume(config.resume, run_dir, accelerator, model, optimizer, data=data)
    log = tracking.MetricsLog(accelerator, config, run_dir, done)
    checkpoints = writer.AsyncCheckpointer(
        run_dir, accelerator, model, optimizer, every=config.save_every_steps, last=batches.steps, log=log,
        keep_last=config.keep_last, keep_every=config.keep_every, timeout_minutes=config.timeout_minutes,
        metadata={"parts": parts, "stage": config.stage, "lora": vars(config.lora), "data": data},
    )  # fmt: skip
    epochs = epoch_models.EpochModels(config, run_dir, accelerator, model, processor, parts, batches, done)
    loop.fit(
        accelerator, trained, optimizer, losses.TEXT, epochs=batches.epochs(done), total_steps=batches.steps,
        accumulation=batches.accumulation, rate_at=optim.schedule(config, batches.steps),
        max_grad_norm=config.max_grad_norm, log=log, **checkpoints.hooks, done_steps=done, seed=config.seed,
        end_of_epoch=asked.each_epoch(config, model, processor, batches, log, done, first=epochs.save),
        matmul_peak=loop.matmul_peak(accelerator), remedy=run_folder.slower(run_dir),
    )  # fmt: skip
    checkpoints.close()
    answering = (model, processor) if config.quantize else None  # loaded anew it might be larger than the memory
    model = trained = optimizer = checkpoints = epochs = None  # frees what evaluations need
    if asked.items:
        asked.answer(*(answering or load(run_dir, base=config.base)))
    answering = None
    results = evaluation.evaluate(after_finetune(config, run_dir), accelerator) if config.eval_tasks else {}
    return finish(config, run_dir, started, batches, asked, results, log)


def finish(config: FinetuneConfig, run_dir, started: float, batches, asked, results: dict, log) -> dict:
    """Ends a run; on the main process writes, logs, prints and returns its summary, with the main score of every task.

    Raises:
        ValueError: too many questions of a task ended in errors.
    """
    from eval.records import check_errors
    from prismatic.text.speech import style_of
    from prismatic.training.console import print_summary, summarise
    from vision_backbones.files import write_json

    if not log.accelerator.is_main_process:
        log.accelerator.end_training()
        return {}
    tasks = results.get("tasks", {})
    scores = {key: task["metrics"][task["main"]] for key, task in tasks.items()}
    summary = summarise(run_dir, time.perf_counter() - started, batches.steps_per_epoch)
    summary["prompt_style"] = style_of(batches.processor.tokenizer)
    summary |= asked.report(run_dir, config.data.held_out, log, batches) | scores
    log.track({f"eval/{key}": score for key, score in scores.items()}, batches.steps)
    write_json(run_dir / "summary.json", summary)
    print_summary(run_dir, summary, f"python -c \"import prismatic; prismatic.load('{run_dir}')\"")
    log.accelerator.end_training()
    check_errors(tasks, EvaluateConfig.max_error_share)
    return summary


if __name__ == "__main__":
    cli.run(main, parse_finetune)
