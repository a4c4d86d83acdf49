"""Evaluating a model on several benchmarks: what `recipes/evaluate.py` does, and a finetune when it ends."""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

from eval import fingerprints, records, runner
from eval.data.selection import without_area
from eval.generate_engine import load_engine
from eval.report.html_report import scores_table, write_report
from eval.report.runs import read_runs
from prismatic.checkpoints.run_folder import one_writer
from prismatic.training.processes import on_main


def read_jobs(config) -> list[runner.Job]:
    """The tasks of an `EvaluateConfig` with their examples.

    Raises:
        ValueError: a task is unknown, or its data are not all there.
    """
    root = runner.data_root(config.data_root)
    return runner.read_jobs(
        config.tasks, root, slim=config.slim, limit=config.limit, allow_partial=config.allow_partial
    )


def evaluate(config, accelerator: Accelerator) -> dict:
    """Runs an evaluation: a folder with results.json, a report and every answer. Answers that are there are kept.

    Args:
        config: an `EvaluateConfig`.
        accelerator: its processes share the questions.

    Returns:
        The content of `results.json` on the main process, else an empty dict.

    Raises:
        ValueError: a task is unknown, its data are not all there, or the model cannot be read.
    """
    jobs = read_jobs(config)
    accelerator.print(", ".join(f"{job.key}: {len(job.examples):,} questions" for job in jobs))
    for job in jobs:
        if count := without_area(job.examples):
            accelerator.print(f"{job.key}: {count:,} true boxes have no area: no answer can match them")
    read_runs(config.compare)
    out = Path(config.out) if config.out else runner.default_out(config.model)
    one_writer(out, accelerator, "wait for it, or choose another --out")

    engine = load_engine(
        config.model,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        device=accelerator.device,
        batch_size=config.batch_size,
        strict=config.strict,
        prompt_style=config.prompt_style,
        base=config.base,
        say=accelerator.print,
    )
    model_fingerprint = on_main(accelerator, lambda: fingerprints.model_fingerprint(engine.model))
    if config.compile:
        language_model = getattr(engine.model, "llm", engine.model)
        language_model.forward = torch.compile(language_model.forward, dynamic=True)
    box_frame = config.box_frame or getattr(engine.model.config, "box_frame", "image")
    settings = {"precision": config.precision, "strict": config.strict, "box_frame": box_frame}
    asked = settings | fingerprints.spoken(engine.model, engine.processor)
    metadata = fingerprints.made_by() | {
        "model": config.model,
        "model_fingerprint": model_fingerprint,
        "data_root": str(jobs[0].root.resolve()),
        "chat_template": engine.processor.tokenizer.chat_template or engine.processor.chat_template,
        "settings": asdict(config) | settings,
    }
    results = {}
    for job in jobs:
        fingerprint = on_main(accelerator, lambda: fingerprints.job_fingerprint(job, model_fingerprint, asked))  # noqa: B023
        entry = runner.run_job(
            job, engine, accelerator, out, fingerprint, box_frame=box_frame, overwrite=config.overwrite
        )
        if accelerator.is_main_process:
            results = records.write_results(out, {job.key: entry}, metadata)
    if accelerator.is_main_process:
        print(f"\n{scores_table(results)}\n\n{out}: results.json, report.html, samples.jsonl of every task")
        write_report(out, [Path(other) for other in config.compare])
    return results
