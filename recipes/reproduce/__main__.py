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
    seeds, more = range(config.seeds), range(config.seeds, config.seeds + config.more_seeds)
    records = run_seeds(config, seeds, more)
    found = findings.collect(config, records)
    if more and findings.too_wide(found):
        print(f"the 95 % interval of a planned comparison is wider than {WIDEST}: {len(more)} more seeds\n")
        records += run_seeds(config, more)
        found = findings.collect(config, records)
    report.write(Path(config.out), found)
    print(report.summary(found))
    print(f"\n{config.out}: report.html, miniature.md, results.json, figures")
    return found


def run_seeds(config: ReproduceConfig, numbers: range, perhaps: range = range(0)) -> list[dict]:
    """Runs what has not been run of these seeds, and returns their records; `perhaps` may be run later."""
    from prismatic.miniature.benchmarks import miniature_benchmarks
    from prismatic.miniature.llava_writer import miniature_llava
    from recipes.reproduce import run, seeds

    study = Study(config, numbers)
    kept = {number for number in numbers if seeds.record(study, number)}
    stages = [stage for number in numbers if number not in kept for stage in study.of_seed(number)]
    run.announce(study, run.pending(stages), list(Study(config, perhaps).stages.values()) if len(numbers) > 1 else [])
    if stages:  # Drawn once, before several stages ask for them at the same time.
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
