"""`python -m eval list | prepare | verify | compare | robustness`: benchmarks, their data, runs looked at."""

import argparse
import sys
from pathlib import Path

from eval.task import Task
from eval.tasks import get_task, list_tasks
from vision_backbones.names import take_plugins
from vision_backbones.registry import import_plugins
from vision_backbones.table import table


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m eval", description="Benchmarks: what there is.")
    commands = parser.add_subparsers(dest="command", required=True)
    parser.add_argument("--plugins", metavar="MODULE,...", help="modules that register tasks, imported first")
    listing = commands.add_parser("list", help="every benchmark: examples, metric, chance, files")
    listing.add_argument("--full", action="store_true", help="also variants, licences and notes")
    listing.set_defaults(run=lambda arguments: print(listed(list_tasks(), arguments.full)))
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
    command = commands.add_parser("robustness", help="scores by kind and size, swapped statements, biased answers")
    command.add_argument("folder", type=Path, metavar="RUN", help="evaluation folder")
    command.set_defaults(run=looked_at)
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


def looked_at(arguments: argparse.Namespace) -> None:
    """Writes robustness.json into the evaluation folder, and prints it as tables."""
    from eval.report.robustness import robustness, robustness_tables
    from eval.report.runs import read_runs
    from vision_backbones.files import write_json

    (run,) = read_runs([arguments.folder])
    found = robustness(run)
    write_json(run.folder / "robustness.json", found)
    print(f"{robustness_tables(found)}\n\n{run.folder}: robustness.json")


def listed(tasks: list[Task], full: bool = False) -> str:
    """A table of tasks; what has to be on disk is below it, and more about each if that is asked for."""
    header = ("id", "split", "examples", "metric", "chance", "majority")
    rows = [row for task in tasks for row in rows_of(task)]
    lines = [table(rows, header)]
    width = max(len(task.name) for task in tasks)
    files = [f"{task.name.ljust(width)}  {'  '.join(task.files)}" for task in tasks]
    lines += ["", "On disk, below --data_root (or its folder download/):", *files]
    if full:
        about = [f"{task.name.ljust(width)}  {told}" for task in tasks if (told := about_task(task))]
        lines += ["", "Variants (asked as TASK+VARIANT), licences, notes:", *about]
    return "\n".join(lines)


def about_task(task: Task) -> str:
    """What the table has no room for."""
    variants = " ".join(f"+{variant}" for variant in task.variants)
    return "; ".join(part for part in (variants, task.licence and f"licence {task.licence}", task.note) if part)


def rows_of(task: Task) -> list[tuple[str, ...]]:
    """Rows of a task's splits, the default one first."""
    splits = sorted(task.num_examples, key=lambda split: split != task.split)
    return [
        (
            task.name if split == task.split else "",
            split,
            f"{sum(sizes.values()):,}" if (sizes := task.num_examples[split]) else "?",
            (scorer := get_task(f"{task.name}:{split}").scorer).about or scorer.main,
            *guesses(task, split),
        )
        for split in splits
    ]


def guesses(task: Task, split: str) -> list[str]:
    """Chance and majority of a split, for what depends on the examples "data"; what is as above is left out."""
    its = get_task(f"{task.name}:{split}")
    if split != task.split and its.chance == task.chance:
        return ["", ""]
    majority = its.majority if split == task.split else None
    return ["-" if x is None else "data" if callable(x) else f"{x:.1%}" for x in (its.chance, majority)]


if __name__ == "__main__":
    main()
