"""The card of a model on the Hugging Face hub: what it was trained on and how, and its scores as they were measured."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

SETTINGS = (  # that made the model; others say where and how fast
    "vision_backbone", "llm", "projector", "init_from", "stage", "lora", "quantize", "image_resize_strategy",
    "image_size", "prompt_style", "max_length", "epochs", "max_steps", "global_batch_size", "learning_rate",
    "projector_learning_rate", "min_learning_rate", "warmup_ratio", "weight_decay", "decay", "betas", "max_grad_norm",
    "precision", "seed",
)  # fmt: skip
OUTCOMES = {
    "steps": "optimizer steps",
    "passes": "passes over the data",
    "loss_last": "training loss at the end",
    "held_out_questions": "held-out questions",
    "held_out_accuracy_before": "held-out accuracy before",
    "held_out_accuracy_after": "held-out accuracy after",
    "prior_baseline_accuracy": "accuracy of the most frequent answer",
}
ON_THE_HUB = {"llava_v1_5_mix665k.json": "liuhaotian/LLaVA-Instruct-150K"}  # files of annotations
TASK = "image-text-to-text"
TEXT = """
# {name}

A vision-language model: {backbone}, the projector `{projector}`, and {llm}. It was trained with *Prismatic,
locality-aligned*, whose package `prismatic-locality` has to be installed to load it. Its weights are stored in {dtype}.

```python
import prismatic  # makes the Auto classes of transformers know the model

model, processor = prismatic.load("{repo}")
question = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "What is left of the cross?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": question}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
```

With the Auto classes of transformers:

```python
import prismatic
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{repo}")
processor = AutoProcessor.from_pretrained("{repo}")
```
"""


class Run(NamedTuple):
    """What is known of how a model was made: `config.yaml`, `summary.json`, digests of its data, `results.json`."""

    settings: dict[str, Any]
    summary: dict[str, Any]
    data: dict[str, Any]
    evaluations: list[dict[str, Any]]


def read_run(folder: Path, evaluations: list[Path]) -> Run:
    """What a run folder holds, and evaluations in other folders besides; the run's own are in its folder `eval`.

    Raises:
        ValueError: a file is damaged, or a folder holds no evaluation.
    """
    from eval.records import RESULTS, read_results
    from prismatic.checkpoints.run_folder import SUMMARY
    from prismatic.checkpoints.step import STATE_JSON
    from vision_backbones.files import read_json

    settings: Any = {}
    if (folder / "config.yaml").is_file():
        try:
            settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{folder / 'config.yaml'} cannot be read: {' '.join(str(error).split())[:200]}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{folder / 'config.yaml'} cannot be read: expected names and values")
    summary = folder / SUMMARY
    states = sorted(folder.glob(f"checkpoints/step-*/{STATE_JSON}"))
    data = read_json(states[-1], "delete its folder").get("data") if states else None
    own = [folder / "eval"] if (folder / "eval" / RESULTS).is_file() else []
    for place in evaluations:
        if not (place / RESULTS).is_file():
            raise ValueError(f"{place} holds no {RESULTS}: --eval takes folders that recipes/evaluate.py wrote")
    return Run(
        settings,
        read_json(summary, "restore it") if summary.is_file() else {},
        data or {},
        [read_results(place) for place in dict.fromkeys([*own, *evaluations])],
    )


def model_card(
    repo: str, config: dict[str, Any], run: Run, commit: str | None, datasets: list[str], license: str | None = None
) -> str:
    """The text of a model's README: front matter, how it is loaded, scores, data, settings, commits.

    Args:
        repo: `owner/name` on the hub.
        config: the model's `config.json`.
        run: what is known of how it was made.
        commit: of the code that writes the card.
        datasets: ids on the hub of what it was trained on.
        license: id of a license.
    """
    from huggingface_hub import ModelCardData

    spec, annotations = config["vision_config"], Path(str(_data(run).get("annotations") or "")).name
    datasets = datasets or ([ON_THE_HUB[annotations]] if annotations in ON_THE_HUB else [])
    results = [result for evaluation in run.evaluations for result in _results(evaluation)]
    front = ModelCardData(
        pipeline_tag=TASK,
        library_name="transformers",
        license=license,
        tags=["prismatic", "vision-language-model"],
        base_model=_bases(run.settings.get("llm"), spec) or None,
        datasets=datasets or None,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    backbone = f"the {'locality-aligned ' * _aligned(spec)}vision backbone `{short(spec['id'])}`"
    language = f"the language model `{short(run.settings['llm'])}`" if run.settings.get("llm") else "a language model"
    text = TEXT.format(
        name=repo.rpartition("/")[2], repo=repo, backbone=backbone, projector=config["projector"], llm=language,
        dtype=config["dtype"],
    )  # fmt: skip
    sections = [_scores(run.evaluations), _trained_on(run, datasets), _training(run), _commits(run, commit)]
    return f"---\n{front.to_yaml()}\n---\n{text}\n" + "\n\n".join(filter(None, sections)) + "\n"


def short(value: Any) -> Any:
    """A setting as others may read it: of a path on this disk, its last two names."""
    if isinstance(value, str) and Path(value).expanduser().is_absolute():
        return "/".join(Path(value).parts[1:][-2:])
    return value


def _aligned(spec: dict[str, Any]) -> bool:
    return all(part["aligned"] for part in spec["parts"] or [spec])


def _bases(llm: str | None, spec: dict[str, Any]) -> list[str]:
    """Ids on the hub of the LLM and the ViTs."""
    from prismatic.models.llm import get_llm_spec

    try:
        hub = get_llm_spec(llm).hub if llm else ""
    except ValueError:  # a folder that is gone
        hub = ""
    language = [hub] if hub.count("/") == 1 and not Path(hub).exists() else []
    vits = [p["arch"] for p in spec["parts"] or [spec] if "." in p["arch"] and not p["weights"]]
    return language + [f"timm/{arch}" for arch in vits]


def _data_of(evaluation: dict[str, Any], key: str) -> tuple[str, str]:
    """Identifier and name of what a task asked about; drawn scenes are never called by the name of the data set."""
    task = key.partition(":")[0]
    drawn = "miniature" in Path(str(evaluation.get("data_root"))).parts
    return (f"miniature-{task}", f"{task}, drawn scenes in its format") if drawn else (task, task)


def _rows(evaluation: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, float, list[float] | None]]:
    """Task, its entry, metric, score and interval, of main metrics and of all that have an interval."""
    rows = []
    for key, task in evaluation["tasks"].items():
        for metric in dict.fromkeys([task["main"], *(task.get("intervals") or {})]):
            interval = (task.get("intervals") or {}).get(metric)
            rows.append((key, task, metric, task["metrics"][metric], interval))
    return rows


def _results(evaluation: dict[str, Any]) -> list:
    from huggingface_hub import EvalResult

    from eval.report.tables import ends

    found = []
    for key, task, metric, score, interval in _rows(evaluation):
        if metric != task["main"]:
            continue
        type, name = _data_of(evaluation, key)
        said = f"{metric}, 95 % interval {ends(interval)}" if interval else metric
        found.append(
            EvalResult(
                task_type=TASK, dataset_type=type, dataset_name=name, dataset_split=task["split"],
                metric_type=metric, metric_value=score, metric_name=said,
                metric_args={"interval_95": interval} if interval else None,
            )
        )  # fmt: skip
    return found


def _scores(evaluations: list[dict[str, Any]]) -> str:
    from eval.report.tables import ends, percent

    if not evaluations:
        return "## Scores\n\nThis model has not been evaluated."
    rows, notes = [], []
    for evaluation in evaluations:
        settings = evaluation["settings"]
        for key, task, metric, score, interval in _rows(evaluation):
            main = metric == task["main"]
            base = [percent(task.get(name)) if main else "" for name in ("majority", "chance")]
            cells = [_data_of(evaluation, key)[1], task["split"], task["examples"] if main else "", metric]
            rows.append([*cells, percent(score), ends(interval), *base])
        part = [name for name in ("limit", "slim", "allow_partial") if settings.get(name)]
        notes.append(
            f"Computed in {settings['precision']}, {'a question at a time' if settings.get('strict') else 'in batches'}"
            + (f"; not necessarily all official examples ({', '.join(part)})" if part else "")
            + f"; by commit `{evaluation.get('commit') or 'unknown'}`."
        )
    header = ["task", "split", "examples", "metric", "score", "95 % interval", "majority class", "chance"]
    text = "Intervals are from a bootstrap over images. " + " ".join(dict.fromkeys(notes))
    return f"## Scores\n\n{_table(header, rows)}\n\n{text}"


def _data(run: Run) -> dict[str, Any]:
    return run.settings.get("data") or {}


def _trained_on(run: Run, datasets: list[str]) -> str:
    said = [f"- on the hub: [{id}](https://huggingface.co/datasets/{id})" for id in datasets]
    if annotations := _data(run).get("annotations"):
        rows = f", {run.data['rows']:,} rows" if "rows" in run.data else ""
        digest = f", SHA-256 `{run.data['annotations']}`" if "annotations" in run.data else ""
        said.append(f"- annotations: `{short(annotations)}`{rows}{digest}")
    if said and run.settings.get("init_from"):
        said.append(f"- it started from `{short(run.settings['init_from'])}`, whose data come on top")
    return "## Data\n\n" + ("\n".join(said) or "Not recorded.")


def _training(run: Run) -> str:
    if not run.settings:
        return ""
    chosen = {name: run.settings.get(name) for name in SETTINGS}
    chosen |= {f"data.{name}": _data(run).get(name) for name in ("packing", "sampler")}
    if chosen["stage"] != "lora":
        chosen["lora"] = None
    rows = [[f"`{name}`", f"`{_said(value)}`"] for name, value in chosen.items() if value is not None]
    outcomes = [[said, f"{run.summary[name]:.4g}"] for name, said in OUTCOMES.items() if name in run.summary]
    merged = "\n\nIts LoRA adapters are merged into the weights." if chosen["stage"] == "lora" else ""
    result = f"\n\n{_table(['result', 'value'], outcomes)}" if outcomes else ""
    return f"## Training\n\n{_table(['setting', 'value'], rows)}{result}{merged}"


def _said(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(short(value))


def _commits(run: Run, commit: str | None) -> str:
    trained = run.summary.get("commit")
    said = f"trained by commit `{trained}`, " if trained else ""
    return f"## Code\n\nThis model was {said}written for the hub by commit `{commit or 'unknown'}`."


def _table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
