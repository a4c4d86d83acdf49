"""The stages of the study: every one a command line of a recipe, and the stages whose results it reads."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prismatic import miniature
from prismatic.miniature.benchmarks import BENCHMARKS_VERSION
from prismatic.miniature.llava_writer import WORLD_VERSION
from recipes.config.parsing import CONFIGS
from recipes.config.reproduce import ReproduceConfig
from vision_backbones.weights import ASSETS as BACKBONES

LLM = Path(miniature.__file__).parent / "assets" / "llm"
FINETUNE_PRESET = CONFIGS / "miniature.yaml"
TASKS = ("refcoco", "ocid-ref", "tallyqa", "vsr", "ai2d", "mmvp+llava")
HEADS = ("linear", "mlp", "transformer")
LABELS = ("union", "global-union")  # of patches, of whole images
CELLS = {  # vision backbone, with the block that is read where that is a choice, and projector of each VLM
    "original@second-to-last, gelu-mlp": ("original@second-to-last", "gelu-mlp"),
    "original@last, gelu-mlp": ("original@last", "gelu-mlp"),
    "aligned@second-to-last, gelu-mlp": ("aligned@second-to-last", "gelu-mlp"),
    "aligned@last, gelu-mlp": ("aligned@last", "gelu-mlp"),
    "aligned, pretrained-decoder": ("aligned", "pretrained-decoder"),
    "original, transformer": ("original", "transformer"),
    "aligned, truncated": ("aligned", "truncated"),
    "original, truncated": ("original", "truncated"),
}
COMPARISONS = (  # planned in docs/results/plan.md: a cell, and what it is compared with
    ("aligned@last, gelu-mlp", "original@second-to-last, gelu-mlp"),
    ("aligned@last, gelu-mlp", "original@last, gelu-mlp"),
    ("aligned@second-to-last, gelu-mlp", "original@second-to-last, gelu-mlp"),
    ("aligned, pretrained-decoder", "original, transformer"),
    ("aligned, truncated", "original, truncated"),
)
CLAIM = COMPARISONS[:2]  # both must be decided for “alignment helps the VLM with gelu-mlp”
WIDEST = 0.08  # width of a planned comparison's 95 % interval above which more seeds are run
PAPERS, MIM_FIRST = "as in the paper", "MIM first"
ABLATIONS = {  # what is set otherwise than in the paper's alignment
    PAPERS: {},
    "Bernoulli masks": {"masks.sampler": "bernoulli"},
    "block-wise masks": {"masks.sampler": "blockwise"},
    "no antithetical masks": {"masks.antithetical": "false"},
    "cosine loss": {"loss": "cosine"},
    "class token only": {"prefix_only": "true"},
    "final-layer target": {"teacher_skip_blocks": "0"},
    "decoder of 0 blocks": {"decoder_blocks": "0"},
    "decoder of 1 block": {"decoder_blocks": "1"},
    "decoder of 4 blocks": {"decoder_blocks": "4"},
    MIM_FIRST: {},
}
# Processor seconds a unit of work on the machine of docs/results, start of the process and evaluations included.
START = 10.0
PER_UNIT = {"pretrain": 1.5, "mim": 0.012, "align": 0.0132, "probe": 0.003, "finetune": 0.0185, "evaluate": 0.11}


@dataclass(frozen=True)
class Stage:
    """A command line and where its results are.

    Attributes:
        name: Such as "seed-0/align"; what the report looks results up by.
        kind: One of `PER_UNIT`.
        module: What is run, such as `recipes.align`.
        settings: Of its command line, in order; the folder of the results comes to it.
        needs: Stages that must have ended before.
        folder: Where results go; its name ends with the fingerprint.
        work: Units of it: optimizer steps of a pretraining, images of the other kinds.
    """

    name: str
    kind: str
    module: str
    settings: tuple[tuple[str, str], ...]
    needs: tuple["Stage", ...]
    folder: Path
    work: int

    @property
    def arguments(self) -> list[str]:
        """The command line after the module's name."""
        places = {
            "pretrain": [("out", f"{self.folder}/backbone.safetensors")],
            "evaluate": [("out", str(self.folder))],
        }.get(self.kind, [("run_root", str(self.folder.parent)), ("run_id", self.folder.name)])
        return [part for name, value in [*self.settings, *places] for part in (f"--{name}", value)]

    @property
    def seconds(self) -> float:
        """Processor seconds that it will take, roughly."""
        return START + PER_UNIT[self.kind] * self.work


class Study:
    """All stages of a study.

    Attributes:
        config: A `ReproduceConfig`.
        stages: By name; a stage comes after those it needs.
        counted: Operations of one evaluation by cell, whose VLMs differ by their weights alone, once they are counted.
    """

    def __init__(self, config: ReproduceConfig, seeds: Iterable[int]) -> None:
        """Plans the stages of these seeds; nothing is run or read but bundled files, for their fingerprints."""
        self.config, self.stages, self.counted = config, {}, {}
        for seed in seeds:
            self._seed(seed, own=seed >= config.bundled_seeds)

    def of_seed(self, seed: int) -> list[Stage]:
        """The stages of one seed."""
        return [stage for stage in self.stages.values() if stage.name.startswith(f"seed-{seed}/")]

    def backbones(self, seed: int) -> dict[str, str]:
        """The backbones "original" and "aligned" of a seed, as recipes take them."""
        own = self.stages.get(f"seed-{seed}/pretrain")
        return {
            "original": str(own.folder) if own else "miniature",
            "aligned": str(self.stages[f"seed-{seed}/align"].folder),
        }

    def _seed(self, seed: int, own: bool) -> None:
        config, name = self.config, f"seed-{seed}"
        before = ()
        if own:
            settings = {"seed": seed, "steps": config.pretrain_steps}
            make = "prismatic.miniature.make_vit"
            before = (self._add(f"{name}/pretrain", "pretrain", make, settings, (), config.pretrain_steps),)
        original = str(before[0].folder) if own else "miniature"
        align = {"teacher": original, "data.train": f"miniature:{config.align_scenes}", "epochs": 1, "seed": seed}
        images = config.align_scenes
        aligned = self._add(f"{name}/align", "align", "recipes.align", align, before, images)
        pair = self.backbones(seed)
        self._probe(f"{name}/probe", list(pair.values()), seed, HEADS, LABELS, (*before, aligned))
        for cell, (backbone, projector) in CELLS.items():
            if projector not in config.projectors:
                continue
            name_of, at, block = backbone.partition("@")
            settings = {
                "vision_backbone": pair[name_of] + at + block,
                "projector": projector,
                "data.annotations": f"miniature:{config.finetune_rows}",
                "data.held_out_limit": 100,
                "epochs": config.finetune_epochs,
                "seed": seed,
                "eval_tasks": "[]",
            }
            needs = (aligned,) if name_of == "aligned" else before
            rows = config.finetune_rows * config.finetune_epochs
            model = self._add(f"{name}/finetune, {cell}", "finetune", "recipes.finetune", settings, needs, rows)
            settings = {
                "model": str(model.folder),
                "tasks": ",".join(TASKS),
                "data_root": f"miniature:{config.eval_scenes}",
                "precision": "fp32",
                "allow_partial": "true",
            }
            self._add(
                f"{name}/evaluate, {cell}", "evaluate", "recipes.evaluate", settings, (model,), config.eval_scenes
            )
        if seed >= config.ablation_seeds:
            return
        images = config.ablation_scenes
        align["data.train"] = f"miniature:{images}"
        for ablation, changed in ABLATIONS.items():
            needs = before
            if ablation == MIM_FIRST:
                mim = {"teacher": original, "data.train": f"miniature:{images // 2}", "epochs": 1, "seed": seed}
                needs = (*before, self._add(f"{name}/mim", "mim", "recipes.mim", mim, before, images // 2))
                changed = {"student": str(needs[-1].folder)}
            varied = self._add(f"{name}/align, {ablation}", "align", "recipes.align", align | changed, needs, images)
            self._probe(f"{name}/probe, {ablation}", [str(varied.folder)], seed, ("linear",), LABELS[:1], (varied,))

    def _probe(self, name: str, backbones: list[str], seed: int, heads, labels, needs: tuple[Stage, ...]) -> None:
        for head in heads:
            settings = {
                "backbone": ",".join(backbones),
                "data_root": f"miniature:{self.config.probe_scenes}:{self.config.probe_scenes // 6}",
                "dataset": "miniature",
                "labels": ",".join(labels),
                "head": head,
                "warmup_steps": 100,
                "precision": "fp32",
                "workers": 1,
                "seed": seed,
            }
            probes = len(backbones) * len(labels)
            work = self.config.probe_scenes * probes * (3 if head == "transformer" else 1)
            self._add(f"{name}, {head} head", "probe", "recipes.probe", settings, needs, work)

    def _add(self, name: str, kind: str, module: str, settings: dict, needs: tuple[Stage, ...], work: int) -> Stage:
        settings = {key: str(value) for key, value in settings.items()}
        plain = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name).replace("--", "-")
        # Of the settings as they are with the default folder: a copy elsewhere is the same study.
        places = f"{Path(self.config.run_root)}/", f"{ReproduceConfig.run_root}/"
        told = fingerprint(module, {key: value.replace(*places) for key, value in settings.items()})
        folder = Path(self.config.run_root) / f"{plain}-{told}"
        self.stages[name] = Stage(name, kind, module, tuple(settings.items()), needs, folder, work)
        return self.stages[name]


def fingerprint(module: str, settings: dict[str, str]) -> str:
    """A hash of a command, which holds the fingerprints of what it reads, and of the bundled weights that it reads."""
    command = [str(WORLD_VERSION), module, *(part for pair in settings.items() for part in pair)]
    command += [str(BENCHMARKS_VERSION)] if "tasks" in settings else []
    digest = hashlib.sha256("\0".join(command).encode())
    read = ",".join(settings.get(name, "") for name in ("teacher", "vision_backbone", "backbone")).split(",")
    names = {name.partition("@")[0] for name in read}
    bundled = [BACKBONES / "miniature.safetensors"] if "miniature" in names else []
    bundled += [FINETUNE_PRESET, *sorted(LLM.iterdir())] if "vision_backbone" in settings else []
    for path in bundled:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
