"""`prismatic JOB ...`: one command over all jobs. `prismatic --help` lists them and imports nothing of theirs."""

import gc
import runpy
import sys
from collections.abc import Callable
from typing import NamedTuple

from vision_backbones.names import suggest


class Job(NamedTuple):
    """Module that does a job, words that stand before the user's own, and what it does in a line."""

    module: str
    words: tuple[str, ...]
    does: str


GROUPS = {
    "train": {
        "finetune": Job("recipes.finetune", (), "train a vision-language model: backbone, projector, LLM"),
        "align": Job("recipes.align", (), "teach a vision backbone what is where (MaskEmbed)"),
        "mim": Job("recipes.mim", (), "pretrain a vision backbone by masked image modelling"),
        "classify": Job("recipes.classify", (), "finetune a vision backbone to classify images"),
        "plan": Job("recipes.plan", (), "memory, arithmetic and hours of a finetune, before it is started"),
    },
    "evaluate": {
        "evaluate": Job("recipes.evaluate", (), "run a model on benchmarks"),
        "probe": Job("recipes.probe", (), "ask patch by patch what vision backbones know"),
        "compare": Job("eval", ("compare",), "compare runs of evaluate, with intervals and paired tests"),
        "reproduce": Job("recipes.reproduce", (), "the paper in miniature, with controls, seeds and a report"),
    },
    "data": {
        "prepare": Job("eval", ("prepare",), "download what a benchmark needs"),
        "verify": Job("prismatic.data.verify", (), "check training data before it is trained on"),
    },
    "models": {
        "backbones": Job("vision_backbones", (), "list, describe or convert vision backbones"),
        "tasks": Job("eval", ("list",), "list benchmarks: examples, metric, chance, files"),
        "llms": Job("recipes.llms", (), "list the language models that are known by name"),
        "check-llm": Job("recipes.check_llm", (), "try whether an LLM trains and answers as it should"),
        "export": Job("recipes.export", (), "write a run or a checkpoint as a plain Hugging Face folder"),
        "import-reference": Job("recipes.import_reference", (), "read a checkpoint of the reference implementation"),
    },
    "terminal": {
        "completion": Job("recipes.completion", (), "print a script that completes job names in your shell"),
    },
}
JOBS = {name: job for group in GROUPS.values() for name, job in group.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs a job as `python -m` of its module does; `--plugins` may stand before its name."""
    argv = list(sys.argv[1:] if argv is None else argv)
    before = []
    while argv[:1] == ["--plugins"] and len(argv) > 1:
        before += argv[:2]
        argv = argv[2:]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    name, *rest = argv
    if name not in JOBS:
        print(f"error: unknown job {name!r}: {suggest(name, JOBS)}", file=sys.stderr)
        raise SystemExit(2)
    job = JOBS[name]
    sys.argv = [f"prismatic {name}", *job.words, *rest, *before]
    runpy.run_module(job.module, run_name="__main__", alter_sys=True)


def run(main: Callable, parse: Callable) -> None:
    """Calls a recipe's `main` with its command line; what a user can mend ends it in one line with exit status 1."""
    config = parse(sys.argv[1:])
    gc.disable()  # until `loop.launch`: a quarter of the time that importing the libraries takes
    from safetensors import SafetensorError
    from torch.distributed.elastic.multiprocessing.errors import record

    try:
        record(main)(config)  # so that launchers show the error of the process that failed
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("error: interrupted") from None


def overview() -> str:
    """All jobs, a line each."""
    lines = ["usage: prismatic JOB ...", "", "`prismatic JOB --help` explains a job and its settings."]
    for title, jobs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:18}{job.does}" for name, job in jobs.items())]
    return "\n".join(lines)
