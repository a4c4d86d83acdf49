"""`prismatic JOB ...`: one command over all jobs. `prismatic --help` lists them and imports nothing of theirs."""

import gc
import runpy
import sys
from collections.abc import Callable
from typing import NamedTuple

from vision_backbones.names import suggest, take_plugins


class Job(NamedTuple):
    """A module that does a job, and what stands before the user's own words.

    The last says whether plugins are among the settings that its runs record, so that they are there when one resumes.
    """

    module: str
    words: tuple[str, ...]
    does: str
    records_plugins: bool = False


GROUPS = {
    "train": {
        "finetune": Job("recipes.finetune", (), "train a vision-language model: backbone, projector, LLM", True),
        "align": Job("recipes.align", (), "teach a vision backbone what is where (MaskEmbed)", True),
        "mim": Job("recipes.mim", (), "pretrain a vision backbone by masked image modelling", True),
        "classify": Job("recipes.classify", (), "finetune a vision backbone to classify images", True),
        "plan": Job("recipes.plan", (), "memory, arithmetic and hours of a finetune, before it is started", True),
    },
    "evaluate": {
        "evaluate": Job("recipes.evaluate", (), "run a model on benchmarks", True),
        "probe": Job("recipes.probe", (), "ask patch by patch what vision backbones know", True),
        "compare": Job("eval", ("compare",), "compare runs of evaluate, with intervals and paired tests"),
        "reproduce": Job("recipes.reproduce", (), "the paper in miniature, with controls, seeds and a report"),
    },
    "talk": {
        "chat": Job("recipes.chat", (), "talk with a model about a picture, or have it answer a file of questions"),
        "app": Job("recipes.app", (), "a page to chat, to see where backbones look, and to follow runs"),
        "serve": Job("recipes.serve", (), "answer questions over HTTP as OpenAI's interface does"),
    },
    "data": {
        "data": Job("recipes.data", (), "training data by name: list, prepare, look at it as a model sees it, verify"),
        "prepare": Job("eval", ("prepare",), "download what a benchmark or a probe needs"),
        "verify": Job("prismatic.data.verify", (), "check training data before it is trained on"),
    },
    "models": {
        "models": Job("recipes.models", (), "list the released models and weights that are fetched by name"),
        "backbones": Job("vision_backbones", (), "list, describe, convert or export vision backbones"),
        "export-backbone": Job("vision_backbones", ("export",), "write a vision backbone as a folder that timm loads"),
        "tasks": Job("eval", ("list",), "list benchmarks: examples, metric, chance, files"),
        "llms": Job("recipes.llms", (), "list the language models that are known by name"),
        "projectors": Job("recipes.parts", ("projectors",), "list the projectors between backbone and LLM"),
        "losses": Job("recipes.parts", ("losses",), "list the losses of align and mim"),
        "check-llm": Job("recipes.check_llm", (), "try whether an LLM trains and answers as it should"),
        "export": Job("recipes.export", (), "write a run or a checkpoint as a plain Hugging Face folder"),
        "push": Job("recipes.push", (), "upload a run to the Hugging Face hub, with a card of its data and scores"),
        "import-reference": Job("recipes.import_reference", (), "read a checkpoint of the reference implementation"),
        "import-llava": Job("recipes.import_llava", (), "read a LLaVA 1.5 of transformers (llava-hf)"),
    },
    "terminal": {
        "completion": Job("recipes.completion", (), "print a script that completes job names in your shell"),
    },
}
JOBS = {name: job for group in GROUPS.values() for name, job in group.items()}


def main(argv: list[str] | None = None) -> None:
    """Runs a job as `python -m` of its module does; `--plugins MODULE,...` may stand anywhere."""
    try:
        argv, plugins = take_plugins(list(sys.argv[1:] if argv is None else argv))
        if not argv or argv[0] in ("-h", "--help"):
            print(overview())
            return
        name, *rest = argv
        if name.startswith("-"):
            raise ValueError(f"unknown option {name}: the name of a job comes first; prismatic --help lists them")
        if name not in JOBS:
            raise ValueError(f"unknown job {name!r}: {suggest(name, JOBS)}")
        job = JOBS[name]
        if plugins and not job.records_plugins:
            from vision_backbones import import_plugins

            import_plugins(plugins)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    taken = ["--plugins", ",".join(plugins)] if plugins and job.records_plugins else []
    sys.argv = [f"prismatic {name}", *job.words, *rest, *taken]
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
