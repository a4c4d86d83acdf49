"""The paper in miniature: the whole chain of recipes, with controls and seeds, and a report of what came out.

`python -m recipes.reproduce` runs the study, `--quick` a small one, `--help` lists every setting. Start it again after
an interruption: what has ended is not repeated.
"""

import sys

from prismatic.checkpoints.lock import hold, releases
from recipes.config.reproduce import ReproduceConfig, parse_reproduce
from recipes.reproduce.plan import WIDEST, Study


@releases
def main(config: ReproduceConfig) -> dict:
    """Runs what has not been run, and returns the findings that the report shows."""
    from pathlib import Path

    from recipes.reproduce import findings, report

    hold(Path(config.run_root), "wait for it, or choose another --run_root")
    records = run_seeds(config, range(config.seeds))
    found = findings.collect(config, records)
    if findings.too_wide(found) and config.more_seeds:
        print(f"an interval of a planned comparison is wider than {WIDEST}: {config.more_seeds} more seeds\n")
        records += run_seeds(config, range(config.seeds, config.seeds + config.more_seeds))
        found = findings.collect(config, records)
    report.write(Path(config.out), found)
    print(report.summary(found))
    print(f"\n{config.out}: report.html, miniature.md, results.json, figures")
    return found


def run_seeds(config: ReproduceConfig, numbers: range) -> list[dict]:
    """Runs what has not been run of these seeds, and returns their records."""
    from prismatic.miniature.benchmarks import miniature_benchmarks
    from prismatic.miniature.llava_writer import miniature_llava
    from recipes.reproduce import run, seeds

    study = Study(config, numbers)
    kept = {number for number in numbers if seeds.record(study, number)}
    stages = [stage for number in numbers if number not in kept for stage in study.of_seed(number)]
    waiting = run.pending(stages)
    run.announce(study, waiting, config.jobs)
    # Drawn once, before several stages ask for them at the same time.
    miniature_llava(config.finetune_rows), miniature_benchmarks(config.eval_scenes)
    run.run_all(stages, config.jobs)
    return [seeds.record(study, number) for number in numbers]


if __name__ == "__main__":
    try:
        main(parse_reproduce(sys.argv[1:]))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: start it again to go on") from None
