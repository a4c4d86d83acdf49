"""The report of a study: Markdown, one page of HTML that needs no other file, figures as SVG, everything as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipes.reproduce.plan import BASE, CONTROLS, HEADS, TASKS
from recipes.reproduce.words import in_words

TEMPLATE = Path(__file__).with_name("report.html")
NAMES = {"union": "patches (local)", "global-union": "whole image (global)"}


@dataclass
class Section:
    """A heading with paragraphs, figures (file name and SVG) and tables (header and rows) below."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[tuple[Sequence[str], list[Sequence[str]]]] = field(default_factory=list)
    figures: list[tuple[str, bytes]] = field(default_factory=list)


def write(out: Path, found: dict) -> None:
    """Writes `miniature.md`, `report.html`, `results.json` and the figures into `out`."""
    from eval.report import pages
    from vision_backbones.files import replacing, write_json, write_text

    out.mkdir(parents=True, exist_ok=True)
    parts = [_summary(found), _probes(found), _ablations(found), _benchmarks(found), _z_scores(found), _costs(found)]
    parts = [part for part in parts if part]
    for name, svg in (figure for part in parts for figure in part.figures):
        with replacing(out / name) as tmp_path:
            tmp_path.write_bytes(svg)
    write_text(out / "miniature.md", "\n\n".join(["# The paper in miniature", *map(_markdown, parts)]) + "\n")
    write_text(out / "report.html", pages.render(TEMPLATE, parts=parts))
    write_json(out / "results.json", found)


def _summary(found: dict) -> Section:
    settings, seeds = found["settings"], found["image_level"]
    own = sum(row["own"] for row in seeds)
    paragraphs = [
        in_words(found),
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}; {own} of them pretrained a vision backbone, the rest take the "
        "bundled one, with an alignment, heads and VLMs of their own. Intervals are 95 % t-intervals over seeds, "
        "p-values of paired t-tests over seeds, two-sided, not corrected for their number. Nothing was chosen by these "
        "scores: probes report their last epoch, VLMs their last step. Earlier designs: designs.md.",
        f"A scene holds one to four objects, none hidden, so the attainable image-level recall is 1. "
        f"{settings['align_scenes']:,} scenes for an alignment, {settings['probe_scenes']:,} for a probe, "
        f"{settings['finetune_epochs']} x {settings['finetune_rows']:,} questions for a VLM, "
        f"{settings['eval_scenes']:,} scenes for a benchmark.",
    ]
    rows = [
        (str(row["seed"]), "its own" if row["own"] else "bundled", f"{row['recall']:.3f}", f"{row['precision']:.3f}")
        for row in seeds
    ]
    header = ("seed", "backbone", "image-level recall", "precision")
    return Section("What was found", paragraphs, tables=[(header, rows)])


def _probes(found: dict) -> Section:
    from eval.report.charts import bars

    both, rows, drawn = ("original", "aligned"), [], []
    blind = _blind(found)
    for row in found["probes"]:
        cells = (row["head"], NAMES[row["labels"]], *(_spread(row[which]) for which in both))
        rows.append((*cells, *_paired(row["difference"])))
        drawn.append(_chart_row(f"{cells[0]}, {cells[1]}", {which: row[which] for which in both}) | {"blind": blind})
    header = ("head", "labels", "original", "aligned", "difference", "95 % interval", "p")
    return Section(
        "Probes: macro recall before and after alignment",
        [
            f"Frozen backbones, heads {', '.join(HEADS)}. A class is found where its probability exceeds 0.5; "
            f"the commonest is in {found['commonest_class']:.0%} of scenes: a head that does not look finds none."
        ],
        tables=[(header, rows)],
        figures=[
            (
                "probes.svg",
                bars(drawn, both, title="Probes before and after alignment", x="macro recall", y="head, labels"),
            )
        ],
    )


def _blind(found: dict) -> float | None:
    """The macro recall of a head that does not look."""
    return 0.0 if found["commonest_class"] <= 0.5 else None


def _ablations(found: dict) -> Section | None:
    from eval.report.charts import bars

    if not found["ablations"]:
        return None
    seeds = len(found["ablations"][0]["values"])
    blind = _blind(found)
    rows = [(row["name"], _spread(row), *_paired(row["difference"])) for row in found["ablations"]]
    drawn = [_chart_row(row["name"], {"recall": row}) | {"blind": blind} for row in found["ablations"]]
    header = ("alignment", "local macro recall", "minus the paper's", "95 % interval", "p")
    text = (
        f"Linear head, labels of patches, {seeds} seed{'s' * (seeds > 1)}, {found['settings']['ablation_scenes']:,} "
        "scenes for each alignment. Each changes one thing of it."
    )
    figures = [
        (
            "ablations.svg",
            bars(
                drawn,
                ["recall"],
                title="Alignments that differ from the paper's in one thing",
                x="macro recall of patches",
                y="alignment",
            ),
        )
    ]
    return Section("Ablations", [text], tables=[(header, rows)], figures=figures)


def _benchmarks(found: dict) -> Section:
    from eval.report.charts import bars

    scores, lines = found["benchmarks"], found["lines"]
    cells = list(scores[TASKS[0]])
    header = ("benchmark", *cells, "majority class", "answer prior")
    rows = [
        (task, *(_spread(scores[task][cell]) for cell in cells), *map(_number, lines[task].values())) for task in TASKS
    ]
    differences = [
        (task, cell, *_paired(scores[task][cell]["difference"])) for task in TASKS for cell in cells if cell != BASE
    ]
    drawn = [
        _chart_row(task, scores[task]) | {"majority": lines[task]["majority"], "prior": lines[task]["answer prior"]}
        for task in TASKS
    ]
    text = (
        "Each cell is a vision backbone and a projector, finetuned with the miniature LLM on the same scenes. The "
        "answer prior gives the commonest training answer of each kind of question without looking; for boxes, the "
        "training box that is right most often."
    )
    return Section(
        "Vision-language models on five spatial benchmarks",
        [text],
        tables=[(header, rows), (("benchmark", f"minus {BASE}", "difference", "95 % interval", "p"), differences)],
        figures=[
            (
                "benchmarks.svg",
                bars(drawn, cells, title="Vision-language models: backbone, projector", x="score", y="benchmark"),
            )
        ],
    )


def _z_scores(found: dict) -> Section:
    from eval.report.charts import radar

    by_task, cells = found["z_by_task"], list(found["mean_z"])
    rows = [
        (cell, _spread(z, signed=True), *_paired(z["difference"]), *(f"{by_task[t][cell]['mean']:+.2f}" for t in TASKS))
        for cell, z in found["mean_z"].items()
    ]
    drawn = radar(
        TASKS, {cell: [by_task[task][cell]["mean"] for task in TASKS] for cell in cells}, title="Mean z-scores"
    )
    text = "Of each benchmark over the cells of a seed (population deviation), then the mean over seeds."
    tables = [(("cell", "mean z-score", f"minus {BASE}", "95 % interval", "p", *TASKS), rows)]
    controls = [(cell, CONTROLS[cell], *_paired(more)) for cell, more in found["controls"].items()]
    header = ("cell", "its control", "mean z-score minus the control's", "95 % interval", "p")
    tables += [(header, controls)] if controls else []
    return Section("z-scores", [text], tables=tables, figures=[("radar.svg", drawn)])


def _costs(found: dict) -> Section:
    kinds = defaultdict(list)
    for stage in found["stages"]:
        kinds[stage["kind"]].append(stage)
    rows = []
    for kind, of_kind in kinds.items():
        number = len(of_kind)
        seconds, flops = (sum(stage[name] for stage in of_kind) for name in ("seconds", "flops"))
        each = f"{seconds / number / 60:.1f}", f"{seconds / 3600:.2f}", f"{flops / number / 1e12:.1f}"
        rows.append((kind, str(number), *each))
    header = ("kind of stage", "stages", "minutes each", "hours in all", "TFLOP each")
    commands = [
        (stage["name"], stage["command"], Path(stage["folder"]).name[-8:], f"{stage['seconds'] / 60:.1f}")
        for stage in found["stages"]
    ]
    made = sorted({str(stage["commit"])[:8] for stage in found["stages"]})
    versions = ", ".join(f"{name} {version}" for name, version in found["stages"][-1]["versions"].items())
    text = (
        f"{found['settings']['jobs']} stages ran at a time. Times are of the clock. Made with commit "
        f"{', '.join(made)} and {versions}. TFLOP: of optimizer steps, in probes of their heads alone; of evaluations, "
        "counted on some questions of each benchmark and taken for all."
    )
    return Section(
        "Cost, commands, fingerprints",
        [text],
        tables=[(header, rows), (("stage", "command", "fingerprint", "minutes"), commands)],
    )


def _chart_row(label: str, by_run: dict) -> dict:
    return {
        "label": label,
        "scores": {run: found["mean"] for run, found in by_run.items()},
        "intervals": {run: found["interval"] for run, found in by_run.items()},
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(found: dict, signed: bool = False) -> str:
    number = f"{found['mean']:+.2f}" if signed else f"{found['mean']:.3f}"
    return f"{number} [{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]" if found["interval"] else number


def _paired(difference: dict | None) -> tuple[str, str, str]:
    if difference is None:
        return "", "", ""
    low_high = difference["interval"]
    interval = f"[{low_high[0]:+.3f}, {low_high[1]:+.3f}]" if low_high else "-"
    return f"{difference['mean']:+.3f}", interval, "-" if difference["p"] is None else f"{difference['p']:.4f}"


def _markdown(part: Section) -> str:
    blocks = [f"## {part.title}", *part.paragraphs]
    blocks += [f"![{part.title}]({name})" for name, _ in part.figures]
    for header, rows in part.tables:
        lines = [header, ["---"] * len(header), *rows]
        blocks.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))
    return "\n\n".join(blocks)


def summary(found: dict) -> str:
    """Probes and benchmarks as tables, for the terminal."""
    from vision_backbones.table import table

    parts = [_probes(found), _benchmarks(found)]
    return "\n\n".join(table(rows, header, left=1) for header, rows in (part.tables[0] for part in parts))
