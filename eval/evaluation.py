"""Evaluating a model on several benchmarks: what `recipes/evaluate.py` does, and a finetune when it ends."""

import contextlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from eval import fingerprints, records, runner
from eval.data.selection import without_area
from eval.endpoint import EndpointEngine, asking_again, check_readable, how_answered
from eval.generate_engine import load_engine
from eval.report.html_report import scores_table, write_report
from eval.report.runs import read_runs, samples_path
from prismatic.checkpoints.run_folder import one_writer
from prismatic.training.processes import on_main


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes:
        engine: Answers.
        fingerprint: Of its weights, or of where it is served.
        settings: How it is asked.
        speech: What else its answers depend on.
        chat_template: None where only its server knows it.
    """

    engine: Any
    fingerprint: str
    settings: dict[str, Any]
    speech: dict[str, Any]
    chat_template: str | None


def load_model(config, accelerator: Accelerator) -> Model:
    """The model of an `EvaluateConfig`, ready to answer.

    Raises:
        ValueError: it cannot be read, or several processes ask a server.
    """
    if config.endpoint:
        if accelerator.num_processes > 1:
            raise ValueError("a served model is asked by one process: start one, and set --concurrency")
        asked = {"per_minute": config.requests_per_minute, "max_tokens": config.max_tokens, "say": accelerator.print}
        served = EndpointEngine(config.endpoint, config.name, config.concurrency, **asked)
        unknown = {"precision": None, "strict": None}  # but to its server
        settings = unknown | {"box_frame": config.box_frame or "image"}
        if config.max_tokens is not None:
            settings["max_tokens"] = config.max_tokens
        return Model(served, served.fingerprint, settings, {}, None)
    engine = load_engine(
        config.model,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        device=accelerator.device,
        batch_size=config.batch_size,
        strict=config.strict,
        prompt_style=config.prompt_style,
        base=config.base,
        max_pixels=config.max_pixels,
        say=accelerator.print,
    )
    fingerprint = on_main(accelerator, lambda: fingerprints.model_fingerprint(engine.model))
    if config.compile:
        language_model = getattr(engine.model, "llm", engine.model)
        language_model.forward = torch.compile(language_model.forward, dynamic=True)
    box_frame = config.box_frame or getattr(engine.model.config, "box_frame", "image")
    settings = {"precision": config.precision, "strict": config.strict, "box_frame": box_frame}
    if config.max_pixels is not None:
        settings["max_pixels"] = config.max_pixels
    template = engine.processor.tokenizer.chat_template or engine.processor.chat_template
    return Model(engine, fingerprint, settings, fingerprints.spoken(engine.model, engine.processor), template)


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
        if config.endpoint:
            check_readable(job)
    read_runs(config.compare)
    served = config.endpoint and Path("runs") / f"eval-{config.name.replace('/', '-')}"
    out = Path(config.out or served or runner.default_out(config.model))
    one_writer(out, accelerator, "wait for it, or choose another --out")

    model = load_model(config, accelerator)
    metadata = fingerprints.made_by() | {
        "model": config.model,
        "model_fingerprint": model.fingerprint,
        "data_root": str(jobs[0].root.resolve()),
        "chat_template": model.chat_template,
        "settings": asdict(config) | model.settings,
    }
    asked = model.settings | model.speech
    results = {}
    for job in jobs:
        fingerprint = on_main(accelerator, partial(fingerprints.job_fingerprint, job, model.fingerprint, asked))
        settled = contextlib.nullcontext()
        if config.endpoint and not config.overwrite:
            folder, entry = samples_path(out, job.key).parent, records.read_results(out).get("tasks", {}).get(job.key)
            settled = asking_again(folder, entry, fingerprint)
        with settled:
            box_frame, overwrite = model.settings["box_frame"], config.overwrite
            entry = runner.run_job(
                job, model.engine, accelerator, out, fingerprint, box_frame=box_frame, overwrite=overwrite
            )
        if config.endpoint:
            model.engine.check()
            entry |= how_answered(samples_path(out, job.key))
        if accelerator.is_main_process:
            results = records.write_results(out, {job.key: entry}, metadata)
    if accelerator.is_main_process:
        print(f"\n{scores_table(results)}\n\n{out}: results.json, report.html, samples.jsonl of every task")
        write_report(out, [Path(other) for other in config.compare])
    return results
