"""Runs tasks through an engine: resumable, over several processes, each answer written as soon as it is there."""

import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.data import embedded
from eval.data.selection import SEED, load_examples, majority_share, without_area
from eval.engine import Answer, Question
from eval.records import SAMPLES, appending, check_unchanged, read_results, stored, write_samples
from eval.scoring.bootstrap import intervals
from eval.task import Choose, Example, Record, Task
from vision_backbones.files import describe
from vision_backbones.safe_images import open_image, to_rgb

ENOUGH = 8  # failed questions with which an evaluation that has answered none gives up
LOADERS = 4  # threads that decode the next batch's pictures while this one is computed


@dataclass(frozen=True)
class Job:
    """A task, the examples of it that are evaluated, and where they lie.

    Attributes:
        key: The task as the user named it, such as `refcoco:testA`.
        task: What is evaluated.
        examples: All of them, checked.
        root: Data root.
    """

    key: str
    task: Task
    examples: list[Example]
    root: Path


def read_jobs(
    keys: Sequence[str], root: Path, *, slim: bool = False, limit: int | None = None, allow_partial: bool = False
) -> list[Job]:
    """The tasks with their examples: everything that can be checked before a model is loaded.

    Raises:
        ValueError: A task is unknown or named twice, or data is missing or incomplete.
    """
    from eval.tasks import get_task, parted

    tasks, parts = {key: get_task(key) for key in keys}, [parted(key) for key in keys]
    if twice := [key for key, its in zip(keys, parts, strict=True) if parts.count(its) > 1]:
        raise ValueError(f"tasks named more than once: {', '.join(twice)}")
    if not root.is_dir():
        raise ValueError(f"no folder {root}: give --data_root the folder that holds the data sets")
    load = {"slim": slim, "limit": limit, "allow_partial": allow_partial}
    return [Job(key, task, load_examples(task, root, **load), root) for key, task in tasks.items()]


def data_root(location: str) -> Path:
    """A folder of data sets; `miniature:400` draws 400 scenes as nine benchmarks first.

    Raises:
        ValueError: It names no number of scenes, or one, about which some benchmarks can ask nothing.
    """
    kind, _, count = location.partition(":")
    if kind != "miniature":
        return Path(location).expanduser()
    if not count.isdecimal() or int(count) < 2:
        raise ValueError(f"{location!r} names no or too few scenes; expected miniature:COUNT, such as miniature:400")
    from prismatic.miniature.benchmarks import miniature_benchmarks

    return miniature_benchmarks(int(count))


def default_out(model: str) -> Path:
    """Where an evaluation goes: into the run that it evaluates, or a folder named after the model under `runs/`."""
    for folder in (Path(model), Path("runs") / model):
        if (folder / "checkpoints").is_dir():
            return folder / "eval"
    return Path("runs") / f"eval-{Path(model).name}"


def run_job(job: Job, engine, state, out: Path, fingerprint: str, *, box_frame: str, overwrite: bool = False) -> dict:
    """Answers what is not answered yet, and returns the task's entry of `results.json` (on the main process).

    Every process works on its own images and appends records to a file of its own; the main one puts them together in
    the order of the examples and judges them. Answers of another fingerprint are not used.

    Args:
        job: What is evaluated.
        engine: Returns the answers; has `prepare`, `answer` and `batch_size`.
        state: accelerate's `PartialState` or `Accelerator`: the processes.
        out: Folder of the evaluation.
        fingerprint: From `job_fingerprint`.
        box_frame: What box coordinates are fractions of: `image` or `padded-square`.
        overwrite: Answer everything again.
    """
    for kind in {job.task.answer(example) for example in job.examples}:
        if isinstance(kind, Choose):
            engine.option_ids(kind.options)  # what cannot be scored fails here
    folder = out / job.key.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()
    if overwrite and state.is_main_process:
        for file in folder.glob("*.jsonl"):
            file.unlink()
    state.wait_for_everyone()
    check_unchanged(folder, read_results(out).get("tasks", {}).get(job.key), fingerprint)
    answered = stored(folder, fingerprint)
    state.wait_for_everyone()  # every process has read before one writes
    started = time.perf_counter()
    groups = _by_image(job, answered)[state.process_index :: state.num_processes]
    metadata = {"box_frame": box_frame, "fingerprint": fingerprint}
    with appending(folder / f"rank-{state.process_index}.partial.jsonl") as writer:
        for records in _answer_all(job, groups, engine, state, bool(answered)):
            writer.write_all(record | metadata for record in records)
    state.wait_for_everyone()
    if not state.is_main_process:
        return {}
    seconds = time.perf_counter() - started
    records = stored(folder, fingerprint)
    if missing := [e.id for e in job.examples if e.id not in records]:
        raise ValueError(f"{folder}: {len(missing)} answers are missing, the first of example '{missing[0]}'")
    samples = [judge(job.task, records[example.id]) for example in job.examples]
    write_samples(folder / SAMPLES, samples)
    for file in folder.glob("*.partial.jsonl"):
        file.unlink()
    fresh = len(job.examples) - len(answered)
    metrics = job.task.scorer.summarise(samples)
    return {
        "version": job.task.version,
        "split": job.task.split,
        "examples": len(samples),
        "errors": sum("error" in record for record in samples),
        "boxes_without_area": without_area(job.examples),
        "main": job.task.scorer.main,
        "metrics": metrics,
        "intervals": intervals(samples, metrics, job.task.scorer.main),
        "majority": _majority(job),
        "chance": job.task.guessing(job.examples),
        "seconds": seconds,
        "questions_per_second": fresh / seconds if fresh else None,
        "answered_before": len(answered),
        "prompt": job.task.prompt(job.examples[0]),
        "fingerprint": fingerprint,
        "samples": describe(folder / SAMPLES)["sha256"],
        "seed": SEED,
    }


def judge(task: Task, record: Record) -> Record:
    """The record with its score; a model's output never stops an evaluation, however odd it is."""
    return record | task.scorer.judge(record)


def _majority(job: Job) -> float | None:
    """Score of always giving the commonest answer; None where questions count together, or answers stand for words."""
    kind, answer = job.task.answer(job.examples[0]), job.examples[0].answer
    if job.task.scorer.groups or isinstance(kind, Choose) and answer not in kind.options:
        return None
    official = len(job.examples) == sum(job.task.num_examples[job.task.split].values())
    return job.task.majority if official and job.task.majority else majority_share(job.examples)


def _by_image(job: Job, answered: dict[str, Record]) -> list[list[Example]]:
    """Examples that are still to be answered, grouped by what they show; groups that are alike lie together.

    Alike are those of as many images, and those whose longest prompts are.
    """
    groups: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in job.examples:
        if example.id not in answered:
            groups[example.images].append(example)
    longest = {images: max(len(job.task.prompt(example)) for example in group) for images, group in groups.items()}
    return [groups[images] for images in sorted(groups, key=lambda images: (len(images), longest[images]))]


def _answer_all(job: Job, groups: list[list[Example]], engine, state, useful: bool):
    """Yields records in batches; the next batch's pictures are decoded while one is computed.

    Unless answers were `useful` before, it gives up where none of the first questions can be answered.
    """
    batches, waiting = _batches(groups, engine.batch_size), []
    bar = tqdm(
        total=sum(map(len, groups)), desc=job.key, unit="q", disable=not state.is_main_process, dynamic_ncols=True
    )
    with ThreadPoolExecutor(LOADERS) as pool, bar:

        def load(batch):
            return [pool.submit(load_picture, job, engine, group[0]) for group in batch]

        coming = load(batches[0]) if batches else []
        for number, batch in enumerate(batches):
            pictures = [future.result() for future in coming]
            coming = load(batches[number + 1]) if number + 1 < len(batches) else []
            asked = [(picture, example) for picture, group in zip(pictures, batch, strict=True) for example in group]
            answers = answer_within_memory(job.task, engine, asked)
            waiting += [_record(job.task, example, answer) for (_, example), answer in zip(asked, answers, strict=True)]
            failed = [record["error"] for record in waiting if "error" in record]
            bar.update(len(asked))
            if useful or len(failed) < len(waiting):
                yield waiting
                waiting, useful = [], True
            elif len(waiting) >= ENOUGH or len(waiting) == bar.total:
                raise ValueError(
                    f"{job.key}: none of the first {len(waiting)} questions could be answered: {failed[0][:300]}"
                )


def _batches(groups: list[list[Example]], rows: int) -> list[list[list[Example]]]:
    """Consecutive groups, as many as `rows` examples hold; a larger group is a batch by itself."""
    batches, size = [], 0
    for group in groups:
        if not batches or size + len(group) > rows:
            batches.append([])
            size = 0
        batches[-1].append(group)
        size += len(group)
    return batches


def load_picture(job: Job, engine, example: Example):
    """What the engine makes of an example's picture, or of its pictures as a list; or the error that reading raised."""
    pictures = []
    for image in example.images:
        try:
            with open_image(embedded.source(job.root, image)) as file:
                picture = to_rgb(file)
            pictures.append(job.task.image_of(picture, example) if job.task.image_of else picture)
        except Exception as error:  # damaged files raise nearly anything
            return ValueError(f"{image}: unreadable ({type(error).__name__}: {error})")
    try:
        return engine.prepare(pictures if example.more_images else pictures[0])
    except Exception as error:
        return ValueError(f"{example.image}: unreadable ({type(error).__name__}: {error})")


def answer_within_memory(task: Task, engine, asked: Sequence[tuple[Any, Example]]) -> list[Answer]:
    """Answers to examples, each beside its picture (or its picture's error); on lack of memory in smaller batches.

    Raises:
        ValueError: Memory does not even suffice for one question.
    """
    answers: list[Answer | None] = [
        Answer(error=str(picture)) if isinstance(picture, Exception) else None for picture, _ in asked
    ]
    todo = [number for number, answer in enumerate(answers) if answer is None]
    while todo:
        part = todo[: engine.batch_size]
        pictures = {id(asked[number][0]): asked[number][0] for number in part}
        place = {key: index for index, key in enumerate(pictures)}
        questions = [
            Question(place[id(picture)], task.prompt(example), task.answer(example))
            for picture, example in (asked[number] for number in part)
        ]
        try:
            for number, answer in zip(part, engine.answer(list(pictures.values()), questions), strict=True):
                answers[number] = answer
            todo = todo[len(part) :]
        except ValueError as error:  # of a picture or prompt that this model cannot take: find out which one
            if len(part) == 1:
                answers[part[0]] = Answer(error=f"{type(error).__name__}: {error}")
            else:
                for number in part:
                    answers[number] = answer_within_memory(task, engine, [asked[number]])[0]
            todo = todo[len(part) :]
        except (RuntimeError, MemoryError) as error:
            if not _lacks_memory(error):
                raise
            if engine.batch_size == 1:
                raise ValueError(f"not enough memory for one question: {error}") from error
            engine.batch_size = max(1, min(engine.batch_size, len(part)) // 2)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            tqdm.write(f"out of memory: continuing with batch size {engine.batch_size}")
    return answers


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error).lower() for words in ("out of memory", "not enough memory", "can't allocate memory"))


def _record(task: Task, example: Example, answer: Answer) -> Record:
    record = example.record() | {"prompt": task.prompt(example), "output": answer.text}
    kind = task.answer(example)
    if isinstance(kind, Choose):
        record |= {"options": list(kind.options), "probabilities": answer.probabilities}
    record |= {"finish_reason": answer.finish_reason} if answer.finish_reason else {}
    return record | ({"error": answer.error} if answer.error else {})
