"""`python -m eval list | prepare | verify | compare`: the benchmarks, getting and checking data; runs compared."""

import argparse
import sys
from pathlib import Path

from eval.task import Task
from eval.tasks import list_tasks
from vision_backbones.names import take_plugins
from vision_backbones.registry import import_plugins
from vision_backbones.table import table


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m eval", description="Benchmarks: what there is.")
    commands = parser.add_subparsers(dest="command", required=True)
    parser.add_argument("--plugins", metavar="MODULE,...", help="modules that register tasks, imported first")
    listing = commands.add_parser("list", help="every benchmark: examples, metric, chance, files")
    listing.set_defaults(run=lambda arguments: print(listed(list_tasks())))
    for name, does in (("prepare", "download what a benchmark or probing needs"), ("verify", "check what is there")):
        command = commands.add_parser(name, help=does)
        command.add_argument("task", help="id of a benchmark; for probing coco, coco-things or ade20k")
        command.add_argument("--data_root", type=Path, required=True, help="folder of all data sets")
        command.set_defaults(run=on_disk)
    command = commands.add_parser("compare", help="compare runs of recipes/evaluate.py")
    command.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="evaluation folder; others are held to the first"
    )
    command.add_argument("--out", type=Path, help="folder for compare.json and report.html (beside the first run)")
    command.set_defaults(run=compared)
    try:
        argv, plugins = take_plugins(sys.argv[1:])
        arguments = parser.parse_args(argv)
        import_plugins(plugins)
        status = arguments.run(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.exit(status)


def on_disk(arguments: argparse.Namespace) -> int:
    """Runs prepare or verify; returns the exit status."""
    from eval import prepare as downloads

    return getattr(downloads, arguments.command)(arguments.task, arguments.data_root)


def compared(arguments: argparse.Namespace) -> None:
    """Writes compare.json and report.html, and prints the table."""
    from eval.report.compare import compare, comparison_table, default_folder
    from eval.report.html_report import write_page
    from eval.report.runs import read_runs
    from vision_backbones.files import write_json

    runs = read_runs(arguments.runs)
    comparison = compare(runs)
    out = arguments.out or default_folder(runs[0].folder)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", comparison)
    write_page(out / "report.html", runs, comparison)
    print(f"{comparison_table(comparison)}\n\n{out}: compare.json, report.html")


def listed(tasks: list[Task]) -> str:
    """A table of tasks; what has to be on disk is below it."""
    header = ("id", "split", "examples", "metric", "chance", "majority")
    rows = [row for task in tasks for row in rows_of(task)]
    lines = [table(rows, header)]
    width = max(len(task.name) for task in tasks)
    files = [f"{task.name.ljust(width)}  {'  '.join(task.files)}" for task in tasks]
    return "\n".join([*lines, "", "On disk, below --data_root (or its folder download/):", *files])


def rows_of(task: Task) -> list[tuple[str, ...]]:
    """Rows of a task's splits, the default one first."""
    guess = [f"{share:.1%}" if share is not None else "-" for share in (task.chance, task.majority)]
    splits = sorted(task.num_examples.items(), key=lambda item: item[0] != task.split)
    return [
        (
            task.name if split == task.split else "",
            split,
            f"{sum(sizes.values()):,}",
            task.scorer.about or task.scorer.main,
            *(guess if split == task.split else ["", ""]),
        )
        for split, sizes in splits
    ]


if __name__ == "__main__":
    main()
