"""The settings of an evaluation."""

from dataclasses import dataclass, field

from recipes.config.choices import BoxFrame, Precision
from recipes.config.parsing import check_least, parse

SERVED = "openai:"  # begins a model behind a server
LOADED_ONLY = ("base", "batch_size", "precision", "prompt_style", "max_pixels", "strict", "compile")
SERVED_ONLY = ("name", "concurrency", "requests_per_minute", "max_tokens")


@dataclass
class EvaluateConfig:
    """Evaluates a vision-language model on benchmarks: see `python -m eval list`.

    Without --config_path and --model it runs recipes/configs/evaluate-miniature.yaml: the bundled model on five
    benchmarks of the miniature world.
    """

    # run (or its name), saved model, Hugging Face id of any image-text-to-text model, or openai:URL of a server
    model: str | None = None
    name: str | None = None  # of the model that a server is asked for
    # current path of the base LLM of a LoRA run, if it has moved; PART=PATH,... for other parts
    base: str | None = None
    # benchmarks such as refcoco,refcoco:testA,vsr (list: prismatic tasks)
    tasks: list[str] = field(default_factory=list)
    data_root: str = ""  # folder with the data sets; "miniature:N" generates nine benchmarks of N drawn scenes each
    # folder of the results, an unfinished evaluation there is resumed; null: eval/ in the run, or runs/eval-NAME
    out: str | None = None
    slim: bool = False  # evaluate a fixed random subset of each task, mostly 1,024 examples per subset
    limit: int | None = None  # number of random examples per task, always the same ones
    allow_partial: bool = False  # accept a number of examples that differs from the official one
    overwrite: bool = False  # discard stored answers
    # highest tolerated fraction of failed questions per task; above it the exit status is 1
    max_error_share: float = 0.01

    batch_size: int = 128  # questions per batch; halved when memory runs out
    concurrency: int = 8  # questions that a server is asked at the same time
    requests_per_minute: int | None = None  # most requests that are sent to a server; null: no limit
    max_tokens: int | None = None  # of a server's answers, thoughts included; null: the limits of the tasks
    precision: Precision = "bf16"  # bf16 or fp32, for weights and computation
    prompt_style: str = "auto"  # chat template: a name, FILE.jinja, or auto: the model's own (see docs/llms.md)
    max_pixels: int | None = None  # larger pictures are scaled down to so many; for image processors that know it
    strict: bool = False  # answer one question at a time through generate, without shared computation: for audits
    compile: bool = False  # torch.compile the language model; pays off on long evaluations
    box_frame: BoxFrame | None = None  # reference frame of box fractions; null takes the model's
    compare: list[str] = field(default_factory=list)  # folders of other evaluations to compare with in the report
    # modules to import first, which register your backbones, projectors, losses, prompt styles or tasks
    plugins: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str | None:
        """Base URL of the server that has the model; None for models that are loaded."""
        return self.model.removeprefix(SERVED) if self.model and self.model.startswith(SERVED) else None


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
    check_least(config, 1, "batch_size", "limit", "max_pixels", "concurrency", "requests_per_minute", "max_tokens")
    _check_endpoint(config)


def _check_endpoint(config: EvaluateConfig) -> None:
    """Raises ValueError for settings of loaded models where a server is asked, and the other way round."""
    served = config.endpoint is not None
    for name in LOADED_ONLY if served else SERVED_ONLY:
        if getattr(config, name) != getattr(EvaluateConfig, name):
            kind = "a model that is loaded" if served else f"a server's model, --model {SERVED}URL"
            raise ValueError(f"--{name} is for {kind}: leave it out")
    if not served:
        return
    from eval.endpoint_client import check_url

    check_url(config.endpoint)
    if not config.name:
        raise ValueError("no name: give --name the model that the server is to be asked for")


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
