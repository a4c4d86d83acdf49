"""Evaluates a vision-language model on benchmarks of where things are, and on the usual ones.

`accelerate launch recipes/evaluate.py` alone evaluates the bundled model on the miniature world; `--help` lists every
setting, `python -m eval list` every benchmark. A run that was interrupted continues when it is started again.
"""

from prismatic.checkpoints.lock import releases
from recipes import cli
from recipes.config.evaluate import EvaluateConfig, parse_evaluate


@releases
def main(config: EvaluateConfig) -> dict:
    """Runs the evaluation and returns the content of `results.json` (on the main process)."""
    from eval.evaluation import evaluate
    from eval.records import check_errors
    from prismatic.training import loop
    from vision_backbones import import_plugins

    accelerator = loop.launch("fp32", [], "runs")
    import_plugins(config.plugins)
    results = evaluate(config, accelerator)
    accelerator.end_training()
    if accelerator.is_main_process:
        check_errors({key: results["tasks"][key] for key in config.tasks}, config.max_error_share)
    return results


if __name__ == "__main__":
    cli.run(main, parse_evaluate)
