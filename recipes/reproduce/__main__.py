"""The paper in miniature: the whole chain of recipes, with controls and seeds, and a report of what came out.

`python -m recipes.reproduce` runs the study, `--quick` a small one, `--help` lists every setting. Start it again after
an interruption: what has ended is not repeated.
"""

import sys

from prismatic.checkpoints.lock import hold, releases
from recipes.config.reproduce import ReproduceConfig, parse_reproduce


@releases
def main(config: ReproduceConfig) -> dict:
    """Runs what has not been run, and returns the findings that the report shows."""
    from collections import defaultdict
    from pathlib import Path

    from prismatic.miniature.benchmarks import miniature_benchmarks
    from prismatic.miniature.llava_writer import miniature_llava
    from recipes.reproduce import findings, report, run
    from recipes.reproduce.plan import Study
    from vision_backbones.table import table

    hold(Path(config.run_root), "wait for it, or choose another --run_root")
    study = Study(config)
    stages = list(study.stages.values())
    waiting = run.pending(stages)
    kinds = defaultdict(list)
    for stage in stages:
        kinds[stage.kind].append(stage)
    rows = []
    for kind, of_kind in kinds.items():
        to_go = [stage.seconds for stage in of_kind if stage in waiting]
        rows.append((kind, len(of_kind), len(of_kind) - len(to_go), sum(to_go) / 60))
    print(table(rows, ("stage", "number", "done before", "processor minutes to go")))
    minutes = run.expected_seconds(waiting, config.jobs) / 60
    print(f"\nabout {minutes:.0f} minutes, {config.jobs} stages at a time; logs and results: {config.run_root}/\n")

    # Drawn once, before several stages ask for them at the same time.
    miniature_llava(config.finetune_rows), miniature_benchmarks(config.eval_scenes)
    run.run_all(stages, config.jobs)
    found = findings.collect(study)
    report.write(Path(config.out), found)
    print(report.summary(found))
    print(f"\n{config.out}: report.html, miniature.md, results.json, figures")
    return found


if __name__ == "__main__":
    try:
        main(parse_reproduce(sys.argv[1:]))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: start it again to go on") from None
