"""The report of a study: Markdown, one page of HTML that needs no other file, figures as SVG, everything as JSON."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipes.reproduce.plan import ABLATIONS, COMPARISONS, HEADS, TASKS, WIDEST
from recipes.reproduce.seeds import LAST_STEPS
from recipes.reproduce.words import DECIDED, in_words

TEMPLATE = Path(__file__).with_name("report.html")
NAMES = {"union": "patches (local)", "global-union": "whole image (global)"}


@dataclass
class Section:
    """A heading with paragraphs, figures (file name and SVG) and tables (header, rows, columns of words) below."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[tuple[Sequence[str], list[Sequence[str]], int]] = field(default_factory=list)
    figures: list[tuple[str, bytes]] = field(default_factory=list)


def write(out: Path, found: dict) -> None:
    """Writes `miniature.md`, `report.html`, `results.json` and the figures into `out`."""
    from eval.report import pages
    from vision_backbones.files import replacing, write_json, write_text

    out.mkdir(parents=True, exist_ok=True)
    parts = [_summary(found), _comparisons(found), _probes(found), _ablations(found), _benchmarks(found)]
    parts += [_z_scores(found), _costs(found)]
    parts = [part for part in parts if part]
    for name, svg in (figure for part in parts for figure in part.figures):
        with replacing(out / name) as tmp_path:
            tmp_path.write_bytes(svg)
    write_text(out / "miniature.md", "\n\n".join(["# The paper in miniature", *map(_markdown, parts)]) + "\n")
    write_text(out / "report.html", pages.render(TEMPLATE, parts=parts))
    write_json(out / "results.json", found)


def _summary(found: dict) -> Section:
    settings, seeds = found["settings"], found["seeds"]
    more = len(seeds) - settings["seeds"]
    added = f", {more} of them added because an interval was wider than {WIDEST}" if more > 0 else ""
    paragraphs = [
        in_words(found),
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)}{added}; vision backbones that are not the bundled one were "
        f"pretrained for the seed, in {settings['pretrain_steps']:,} steps. Intervals are 95 % t-intervals over seeds, "
        "p-values of paired t-tests over seeds, two-sided; neither is corrected for their number, except for p (Holm). "
        "No run was chosen by its scores: probes report their last epoch, VLMs their last step. Settings of "
        "finetunes were chosen with another seed, on the aligned backbone and 100 scenes that are among those of each "
        "benchmark here: designs.md. The study in "
        "docs/results was planned before it was run: plan.md.",
        f"A scene holds one to four objects, none hidden, so the attainable image-level recall is 1. "
        f"{settings['align_scenes']:,} scenes for an alignment, {settings['probe_scenes']:,} for a probe, "
        f"{settings['finetune_epochs']} x {settings['finetune_rows']:,} questions for a VLM, "
        f"{settings['eval_scenes']:,} scenes for a benchmark, of which some hold nothing that it can ask about.",
    ]
    rows = [
        (
            str(seed["seed"]),
            "its own" if seed["own"] else "bundled",
            *(f"{seed['image_level'][name]:.3f}" for name in ("recall", "precision")),
        )
        for seed in seeds
    ]
    header = ("seed", "backbone", "image-level recall", "precision")
    return Section("What was found", paragraphs, tables=[(header, rows, 2)])


def _comparisons(found: dict) -> Section:
    from eval.report.charts import differences

    rows = [(row["cell"], row["other"], *_paired(row), _p(row["holm"])) for row in found["comparisons"]]
    drawn = [row | {"label": f"{row['cell']} - {row['other']}"} for row in found["comparisons"]]
    text = (
        f"Mean of {len(TASKS)} benchmarks, paired over seeds. The last column is the p-value by Holm's method over "
        f"{len(COMPARISONS)} comparisons; below {DECIDED} a comparison is decided."
    )
    figure = differences(
        drawn,
        title="Planned comparisons, 95 % intervals (not corrected for their number)",
        x=f"difference of the mean of {len(TASKS)} benchmarks",
        y="",
    )
    header = ("cell", "minus", "difference", "95 % interval", "p", "p (Holm)")
    return Section("Planned comparisons", [text], tables=[(header, rows, 2)], figures=[("comparisons.svg", figure)])


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
        tables=[(header, rows, 2)],
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
    rows = [
        (row["name"], _spread(row), *_paired(row["difference"]), _p((row["difference"] or {}).get("holm")))
        for row in found["ablations"]
    ]
    drawn = [_chart_row(row["name"], {"recall": row}) | {"blind": blind} for row in found["ablations"]]
    header = ("alignment", "local macro recall", "minus the paper's", "95 % interval", "p", "p (Holm)")
    text = (
        f"Linear head, labels of patches, {seeds} seed{'s' * (seeds > 1)}, {found['settings']['ablation_scenes']:,} "
        f"scenes for each alignment. Each changes one thing of it. Holm's method over {len(ABLATIONS) - 1}."
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
    return Section("Ablations", [text], tables=[(header, rows, 1)], figures=figures)


def _benchmarks(found: dict) -> Section:
    from eval.report.charts import bars

    scores, lines, questions = found["benchmarks"], found["lines"], found["seeds"][0]["questions"]
    cells = list(found["means"])
    header = ("cell", *TASKS, "mean", "loss at the end")
    rows = [
        (
            cell,
            *(_spread(scores[task][cell]) for task in TASKS),
            _spread(found["means"][cell]),
            _spread(found["losses"][cell]),
        )
        for cell in cells
    ]
    for name, shown in (("majority", "majority class"), ("prior", "answer prior"), ("chance", "chance")):
        rows.append((shown, *(_number(lines[task][name]) for task in TASKS), "", ""))
    rows.append(("questions", *(f"{questions[task]:,}" for task in TASKS), "", ""))
    differences = [
        (row["task"], row["cell"], row["other"], *_paired(row), _p(row["holm"])) for row in found["by_benchmark"]
    ]
    drawn = [_chart_row(task, scores[task]) | lines[task] for task in TASKS]
    text = (
        "Each cell is a vision backbone, the block of it that is read where that is a choice, and a projector, "
        "finetuned with the miniature LLM on the same scenes. The loss at the end is that of the last "
        f"{LAST_STEPS} steps. The answer prior gives the commonest training answer of each kind of question without "
        "looking; for boxes, the training box that is right most often. mmvp's questions come in pairs, which count if "
        "both answers are right. "
        f"Differences of single benchmarks are secondary: Holm's method over {len(COMPARISONS) * len(TASKS)}."
    )
    header_2 = ("benchmark", "cell", "minus", "difference", "95 % interval", "p", "p (Holm)")
    return Section(
        f"Vision-language models on {len(TASKS)} spatial benchmarks",
        [text],
        tables=[(header, rows, 1), (header_2, differences, 3)],
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
        (cell, _spread(z, signed=True), *(f"{by_task[t][cell]['mean']:+.2f}" for t in TASKS))
        for cell, z in found["mean_z"].items()
    ]
    drawn = radar(
        TASKS, {cell: [by_task[task][cell]["mean"] for task in TASKS] for cell in cells}, title="Mean z-scores"
    )
    text = (
        "As the paper plots them: of each benchmark over the cells of a seed (population deviation), then the mean "
        "over seeds."
    )
    tables = [(("cell", "mean z-score", *TASKS), rows, 1)]
    return Section("z-scores", [text], tables=tables, figures=[("radar.svg", drawn)])


def _costs(found: dict) -> Section:
    kinds, stages = defaultdict(list), [stage for seed in found["seeds"] for stage in seed["stages"]]
    for stage in stages:
        kinds[stage["kind"]].append(stage)
    rows = []
    for kind, of_kind in kinds.items():
        number = len(of_kind)
        seconds, flops = (sum(stage[name] for stage in of_kind) for name in ("processor_seconds", "flops"))
        each = f"{seconds / number / 60:.1f}", f"{seconds / 60:.0f}", f"{flops / number / 1e12:.1f}"
        rows.append((kind, str(number), *each))
    header = ("kind of stage", "stages", "minutes each", "minutes in all", "TFLOP each")
    commands = [
        (stage["name"], stage["command"], stage["folder"][-8:], f"{stage['processor_seconds'] / 60:.1f}")
        for stage in stages
    ]
    made = sorted({re.sub(r"(?<=^.{8})[0-9a-f]*", "", str(stage["commit"])) for stage in stages})
    versions = sorted({f"{name} {version}" for stage in stages for name, version in stage["versions"].items()})
    minutes = sum(stage["processor_seconds"] for stage in stages) / 60
    text = (
        f"Minutes are of the processor, {minutes:.0f} in all. Made with commit {', '.join(made)} and "
        f"{', '.join(versions)}. TFLOP: of optimizer steps, in probes of their heads alone; of evaluations, counted on "
        "some questions of each benchmark for one seed and taken for all."
    )
    return Section(
        "Cost, commands, fingerprints",
        [text],
        tables=[(header, rows, 1), (("stage", "command", "fingerprint", "minutes"), commands, 2)],
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
    return f"{difference['mean']:+.3f}", interval, _p(difference["p"])


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _markdown(part: Section) -> str:
    blocks = [f"## {part.title}", *part.paragraphs]
    blocks += [f"![{part.title}]({name})" for name, _ in part.figures]
    for header, rows, _ in part.tables:
        lines = [header, ["---"] * len(header), *rows]
        blocks.append("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))
    return "\n\n".join(blocks)


def summary(found: dict) -> str:
    """Comparisons, probes and benchmarks as tables, for the terminal."""
    from vision_backbones.table import table

    parts = [_comparisons(found), _probes(found), _benchmarks(found)]
    return "\n\n".join(table(rows, header, left=words) for header, rows, words in (part.tables[0] for part in parts))
