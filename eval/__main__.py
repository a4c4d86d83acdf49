"""`python -m eval list | prepare TASK | verify TASK`: the benchmarks, what each needs, getting and checking it."""

import argparse
import sys
from pathlib import Path

from eval.task import Task, list_tasks
from vision_backbones.registry import import_plugins


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m eval", description="Benchmarks: what there is.")
    commands = parser.add_subparsers(dest="command", required=True)
    plugins = argparse.ArgumentParser(add_help=False)
    plugins.add_argument("--plugins", nargs="*", default=[], metavar="MODULE", help="modules that register tasks")
    listing = commands.add_parser("list", parents=[plugins], help="every benchmark: examples, metric, chance, files")
    listing.set_defaults(run=lambda arguments: print(listed(list_tasks())))
    for name, does in (("prepare", "download what a benchmark needs"), ("verify", "check what is there")):
        command = commands.add_parser(name, parents=[plugins], help=does)
        command.add_argument("task", help="id of a benchmark")
        command.add_argument("--data_root", type=Path, required=True, help="folder of all data sets")
        command.set_defaults(run=on_disk)
    arguments = parser.parse_args()
    try:
        import_plugins(arguments.plugins)
        status = arguments.run(arguments)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    sys.exit(status)


def on_disk(arguments: argparse.Namespace) -> int:
    """Runs prepare or verify; gives the exit status."""
    from eval import downloads

    return getattr(downloads, arguments.command)(arguments.task, arguments.data_root)


def listed(tasks: list[Task]) -> str:
    """A table of tasks; what has to be on disk is below it."""
    header = ("id", "split", "examples", "metric", "chance", "majority")
    rows = [row for task in tasks for row in rows_of(task)]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    files = [f"{task.name.ljust(widths[0])}  {'  '.join(task.files)}" for task in tasks]
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
