"""Accuracy on held-out questions with short answers or boxes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jsonlines
import torch
from tqdm import tqdm

from prismatic.data.conversation_source import ConversationSource
from prismatic.models.padding import padding_problem
from prismatic.text.parsing import iou, parse_box
from prismatic.text.prompts import ROLES
from prismatic.training import sharding
from prismatic.training.answer_sheet import Answered, draw_answers
from prismatic.training.console import print_samples
from vision_backbones.files import replacing

PICTURED = 10  # held-out questions


@dataclass(frozen=True)
class Item:
    """A question about images (or none) and the expected answer; `row` is its place in the data set.

    `turns` are the row's up to the question: a system message may come before it.
    """

    row: int
    id: str
    turns: tuple[dict, ...]
    answer: str

    @property
    def question(self) -> str:
        """As the row says it."""
        return self.turns[-1]["value"]


def read_items(source: ConversationSource, limit: int) -> list[Item]:
    """The first question and answer of the first `limit` rows.

    Raises:
        ValueError: a row cannot be read, or has no answer.
    """
    source.check_rows()
    items = []
    for number in range(min(limit, len(source))):
        row = source[number]
        turns = row["conversations"]
        first = 1 + (ROLES[turns[0]["from"]] == "system")
        items.append(Item(number, row["id"], tuple(turns[:first]), turns[first]["value"]))
    return items


def generate_answers(
    model,
    processor,
    source: ConversationSource,
    items: Sequence[Item],
    *,
    accelerator,
    batch_size: int = 50,
    max_new_tokens: int = 24,
) -> list[str]:
    """Greedy answers to the items, in their order, generated on the accelerator's device.

    In left-padded batches, or one by one where the LLM does not stand padding.
    """
    if not items:
        return []
    training, device = model.training, accelerator.device
    model.to(device).eval()
    with accelerator.autocast():
        batch_size = 1 if padding_problem(model, processor) else batch_size
    outputs = []
    for start in tqdm(range(0, len(items), batch_size), desc="answering", leave=False, delay=5):
        batch = items[start : start + batch_size]
        images = [source.load_images(item.row) for item in batch]
        inputs = processor.ask([list(item.turns) for item in batch], images).to(device)
        with torch.inference_mode(), accelerator.autocast():
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        outputs += processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(training)
    return [text.strip() for text in outputs]


def correct(answer: str, item: Item) -> bool:
    """Whether the answer is the expected one, but for case, outer blanks and a final period; a box by its IoU, 0.5."""
    boxes = [parse_box(text.strip()) for text in (answer, item.answer)]
    if None not in boxes:
        return iou(*boxes) >= 0.5
    given, expected = (text.strip().removesuffix(".").lower() for text in (answer, item.answer))
    return given == expected


def accuracy(answers: Sequence[str], items: Sequence[Item]) -> float:
    """Share of correct answers."""
    return sum(map(correct, answers, items)) / len(items)


def prior_accuracy(held_out: Path, items: Sequence[Item]) -> float | None:
    """What answering each kind of question with the training set's most frequent answer scores.

    Reads `priors.json` beside the held-out file (kind to answer; an item's kind ends its id after a dash); None when
    there is none.
    """
    path = Path(held_out).with_name("priors.json")
    if not path.is_file():
        return None
    priors = json.loads(path.read_text())
    return accuracy([priors[item.id.rsplit("-", 1)[1]] for item in items], items)


class HeldOut:
    """Held-out questions that a finetune's model answers before and after it is trained.

    Args:
        source: the questions, or None for none.
        limit: how many of them are asked.
        accelerator: of the run; only its main process asks.

    Raises:
        ValueError: a row cannot be read, or has no answer.
    """

    def __init__(self, source: ConversationSource | None, limit: int, accelerator):
        self.source, self.accelerator, self.answers, self.box_frame = source, accelerator, [], "image"
        self.items = read_items(source, limit) if source and accelerator.is_main_process else []

    def answer(self, model, processor) -> None:
        """Has all questions answered; the first call is before training, the second after it."""
        self.box_frame = model.config.box_frame
        self.answers.append(generate_answers(model, processor, self.source, self.items, accelerator=self.accelerator))

    def each_epoch(
        self, config, model, processor, batches, log, done: int, *, first: Callable[[int, int], None]
    ) -> Callable[[int, int], None]:
        """An `end_of_epoch` of the loop: what comes `first`, then accuracy is logged, of every epoch but the last.

        The last one's is that of `report`. While parameters are split over processes nobody is asked.

        Args:
            config: a `FinetuneConfig`.
            model: what is trained, and its processor.
            processor: of the model.
            batches: `FinetuneBatches`, which say how many steps there are.
            log: a `MetricsLog`.
            done: steps done before, in a run that continues.
            first: called with the epoch and the steps done; saves the model.
        """
        whole = not sharding.shards(config.sharding, self.accelerator.num_processes)

        def ask(epoch: int, steps_done: int) -> None:
            if not (self.items and whole and steps_done < batches.steps):
                return
            try:
                answers = generate_answers(model, processor, self.source, self.items, accelerator=self.accelerator)
                self._log(log, answers, epoch, steps_done)
            except torch.OutOfMemoryError:
                tqdm.write(f"no memory to answer held-out questions after epoch {epoch + 1}; training continues")

        def end_of_epoch(epoch: int, steps_done: int) -> None:
            first(epoch, steps_done)
            ask(epoch, steps_done)

        if not done:
            self._log(log, self.answers[0], 0, 0)
        elif done % batches.steps_per_epoch == 0:  # it may have been stopped before this
            ask(done // batches.steps_per_epoch - 1, done)
        return end_of_epoch

    def report(self, run_dir: Path, held_out: str, log, batches) -> dict:
        """Writes, prints and logs both answers of every question; returns their scores."""
        if not self.items:
            return {}
        write_samples(run_dir, self.source, self.items, *self.answers, box_frame=self.box_frame)
        print_samples(self.items, *self.answers)
        self._log(log, self.answers[-1], (batches.steps - 1) // batches.steps_per_epoch, batches.steps)
        log.picture("samples", run_dir / "samples.png", batches.steps)
        return scores(held_out, self.items, *self.answers)

    def _log(self, log, answers: Sequence[str], epoch: int, step: int) -> None:
        if self.items:
            log({"step": step, "epoch": epoch, "held_out_accuracy": accuracy(answers, self.items)})


def scores(held_out: str, items, before: Sequence[str], after: Sequence[str]) -> dict:
    """Accuracy on the held-out questions before and after, beside the answer-prior baseline."""
    return {
        "held_out_accuracy_before": accuracy(before, items),
        "held_out_accuracy_after": accuracy(after, items),
        "prior_baseline_accuracy": prior_accuracy(Path(held_out), items),
        "held_out_questions": len(items),
    }


def write_samples(
    run_dir: Path, held_out, items, before: Sequence[str], after: Sequence[str], *, box_frame: str
) -> None:
    """Writes every held-out question with both answers to `held_out.jsonl`, and the first ten as a picture.

    Up to half of the ten are the first that are answered with a box.
    """
    samples = list(zip(items, before, after, strict=True))
    with replacing(run_dir / "held_out.jsonl") as tmp_path, jsonlines.open(tmp_path, "w") as writer:
        for item, early, late in samples:
            row = {"id": item.id, "question": item.question, "expected": item.answer, "before": early, "after": late}
            writer.write(row)
    pictured = [s for s in samples if held_out.is_multimodal[s[0].row]]
    boxed = [s for s in pictured if parse_box(s[0].answer.strip())][: PICTURED // 2]
    pictured = [*boxed, *(s for s in pictured if s not in boxed)][:PICTURED]
    if pictured:
        cells = [
            Answered(
                held_out.load_image(item.row),
                item.question,
                item.answer,
                before=(early, correct(early, item)),
                after=(late, correct(late, item)),
            )
            for item, early, late in pictured
        ]
        draw_answers(run_dir / "samples.png", cells, box_frame)
