"""The settings of the page."""

from dataclasses import dataclass, field

from recipes.config.choices import ServePrecision
from recipes.config.parsing import check_least, parse


@dataclass
class AppConfig:
    """A page on this machine: chat with a model, see where backbones look, follow runs: prismatic app [RUN].

    Without RUN it is the bundled model. Examples:

      prismatic app runs/mine --compare runs/other --images photos
      prismatic app --backbones clip-vit-b,runs/my-alignment --probes runs/probe/clip-vit-b/union
    """

    # RUN, where it does not come first: run (or its name), checkpoint, model's folder, miniature, Hugging Face id
    model: str | None = None
    compare: str | None = None  # a second model, which answers beside the first
    images: str | None = None  # folder whose pictures are offered, 24 at most; null: drawn scenes
    # whose patches are shown: one or two registered ids, timm:<id>, runs of align or finetune
    backbones: list[str] = field(default_factory=lambda: ["miniature", "miniature-aligned"])
    probes: list[str] = field(default_factory=list)  # saved probes of theirs: RUN/BACKBONE/LABELS of prismatic probe
    run_root: str = "runs"  # folder whose runs are shown
    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0 lets others in, and there is no authentication
    port: int = 7860  # port to listen at; 0 takes a free one
    batch_size: int = 16  # questions that each model answers at the same time
    precision: ServePrecision = "auto"  # bf16 or fp32; auto: bf16 on an accelerator, fp32 on a CPU
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: the accelerator if there is one
    # modules to import first, which register your backbones, projectors, losses, prompt styles or tasks
    plugins: list[str] = field(default_factory=list)


def parse_app(argv: list[str]) -> AppConfig:
    """The configuration of a command line. Errors are one line on stderr and exit status 2."""
    return parse(AppConfig, argv, default="app-miniature.yaml", model_first=True, check=check)


def check(config: AppConfig) -> None:
    """Raises ValueError for values that make no sense, before anything is imported or read."""
    if not 0 <= config.port < 2**16:
        raise ValueError(f"--port is {config.port}: expected 0 to 65535")
    check_least(config, 1, "batch_size")
    if not 1 <= len(config.backbones) <= 2:
        raise ValueError(f"--backbones is {','.join(config.backbones) or 'empty'}: expected one or two")
