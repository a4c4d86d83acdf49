"""Evaluates a vision-language model on benchmarks of where things are, and on the usual ones.

`accelerate launch recipes/evaluate.py` alone evaluates the embedded model on the miniature world; `--help` lists every
setting, `python -m eval list` every benchmark. A run that was interrupted continues when it is started again.
"""

from prismatic.checkpoints.lock import releases
from recipes import command
from recipes.config.evaluate import EvaluateConfig, parse_evaluate


@releases
def main(config: EvaluateConfig, accelerator=None) -> dict:
    """Runs the evaluation and gives the content of `results.json` (on the main process).

    A recipe that trained before hands over its accelerator: there is one in a process.
    """
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from eval import fingerprints as provenance
    from eval import records, runner
    from eval.data.selection import without_area
    from eval.generate_engine import load_engine
    from eval.report import html_report as report
    from eval.report.runs import read_runs
    from prismatic.checkpoints.run_folder import one_writer
    from prismatic.training import loop
    from prismatic.training.processes import on_main
    from vision_backbones import import_plugins

    alone = accelerator is None
    accelerator = accelerator or loop.launch("fp32", [], "runs")

    # What can fail early fails here, before the model is loaded.
    import_plugins(config.plugins)
    root = runner.data_root(config.data_root)
    checks = {"slim": config.slim, "limit": config.limit, "allow_partial": config.allow_partial}
    jobs = runner.read_jobs(config.tasks, root, **checks)
    accelerator.print(", ".join(f"{job.key}: {len(job.examples):,} questions" for job in jobs))
    for job in jobs:
        if count := without_area(job.examples):
            accelerator.print(f"{job.key}: {count:,} true boxes have no area: no answer can match them")
    read_runs(config.compare)
    out = Path(config.out) if config.out else runner.default_out(config.model)
    one_writer(out, accelerator, "wait for it, or choose another --out")

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    engine = load_engine(
        config.model,
        dtype=dtype,
        device=accelerator.device,
        batch_size=config.batch_size,
        strict=config.strict,
        prompt_style=config.prompt_style,
        base=config.base,
        say=accelerator.print,
    )
    box_frame = config.box_frame or getattr(engine.model.config, "box_frame", "image")
    fingerprint = on_main(accelerator, lambda: provenance.model_fingerprint(engine.model))
    if config.compile:
        language_model = getattr(engine.model, "llm", engine.model)
        language_model.forward = torch.compile(language_model.forward, dynamic=True)
    settings = {"precision": config.precision, "strict": config.strict, "box_frame": box_frame}
    said = settings | provenance.spoken(engine.model, engine.processor)
    about = provenance.made_by() | {
        "model": config.model,
        "model_fingerprint": fingerprint,
        "data_root": str(root.resolve()),
        "chat_template": engine.processor.tokenizer.chat_template or engine.processor.chat_template,
        "settings": asdict(config) | settings,
    }

    results = {}
    for job in jobs:
        job_fingerprint = on_main(accelerator, lambda: provenance.job_fingerprint(job, fingerprint, said))  # noqa: B023
        entry = runner.run_job(
            job, engine, accelerator, out, job_fingerprint, box_frame=box_frame, overwrite=config.overwrite
        )
        if accelerator.is_main_process:
            results = records.write_results(out, {job.key: entry}, about)
    if accelerator.is_main_process:
        print(f"\n{report.scores_table(results)}\n\n{out}: results.json, report.html, samples.jsonl of every task")
        report.write_report(out, [Path(other) for other in config.compare])
    if alone:
        accelerator.end_training()
        if accelerator.is_main_process:
            records.check_errors({key: results["tasks"][key] for key in config.tasks}, config.max_error_share)
    return results


if __name__ == "__main__":
    command.run(main, parse_evaluate)
