"""The settings of an evaluation."""

from dataclasses import dataclass, field

from recipes.config.choices import BoxFrame, Precision
from recipes.config.parsing import parse


@dataclass
class EvaluateConfig:
    """Evaluates a vision-language model on benchmarks: see `python -m eval list`.

    Without --config_path and --model it runs recipes/configs/evaluate-miniature.yaml: the bundled model on five
    benchmarks of the miniature world.
    """

    model: str | None = None  # run (or its name), saved model, or Hugging Face id of any image-text-to-text model
    base: str | None = None  # where the LLM that a LoRA run adapts lies now, if it was moved (or PART=PATH,...)
    tasks: list[str] = field(default_factory=list)  # such as refcoco,refcoco:testA,vsr
    data_root: str = ""  # folder that holds the data sets; "miniature:400" draws that many scenes as five benchmarks
    out: str | None = None  # folder of the results; a second call continues there; eval/ in the run, or runs/eval-NAME
    slim: bool = False  # a fixed random subset of each task: 1,024 examples of each subset, mostly
    limit: int | None = None  # so many random examples of each task, always the same ones
    allow_partial: bool = False  # accept another number of examples than the official one
    overwrite: bool = False  # forget stored answers
    max_error_share: float = 0.01  # of a task's questions; more that end in errors make exit status 1

    batch_size: int = 128  # questions at once; halved when memory does not suffice
    precision: Precision = "bf16"  # of weights and computation
    prompt_style: str = "auto"  # chat template: a name, FILE.jinja, or auto: the model's own (see docs/llms.md)
    strict: bool = False  # one question at a time through generate, nothing shared: for audits
    compile: bool = False  # torch.compile the language model; pays off on long evaluations
    box_frame: BoxFrame | None = None  # of what boxes are fractions; null: as the model says
    compare: list[str] = field(default_factory=list)  # folders of other evaluations to draw beside this one
    plugins: list[str] = field(default_factory=list)  # modules that register tasks or backbones of your own


def parse_evaluate(argv: list[str]) -> EvaluateConfig:
    """The configuration of a command line of recipes/evaluate.py. Errors are one line on stderr and exit status 2."""
    return parse(EvaluateConfig, argv, default="evaluate-miniature.yaml", check=check)


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    if not config.model:
        raise ValueError("no model: give --model a run, a saved model, or a Hugging Face id")
    if not config.tasks:
        raise ValueError("no tasks: give --tasks a list such as refcoco,vsr; python -m eval list shows all")
    if not config.data_root:
        raise ValueError("no data: give --data_root the folder that holds the data sets, or miniature:400")
    if not 0 <= config.max_error_share <= 1:
        raise ValueError(f"--max_error_share is {config.max_error_share}: expected 0 to 1")
    for name in ("batch_size", "limit"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: expected at least 1")


def after_finetune(config, run_dir=None) -> EvaluateConfig:
    """How a `FinetuneConfig` has its run evaluated at the end."""
    return EvaluateConfig(
        model=run_dir and str(run_dir),
        tasks=config.eval_tasks,
        data_root=config.eval_root,
        precision=config.precision,
        allow_partial=config.eval_root.startswith("miniature:"),
        plugins=config.plugins,
        base=config.base,
    )
