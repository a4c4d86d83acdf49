"""Exact-match accuracy on held-out questions with short answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from prismatic.data.sources import ConversationDataset
from prismatic.models.prompts import render_prompt


@dataclass(frozen=True)
class Item:
    """A question about an image (or none) and the expected answer; `row` is its place in the data set."""

    row: int
    id: str
    question: str
    answer: str


def read_items(source: ConversationDataset, limit: int) -> list[Item]:
    """The first question and answer of the first `limit` rows."""
    rows = [(i, source[i]) for i in range(min(limit, len(source)))]
    return [Item(i, r["id"], r["conversations"][0]["value"], r["conversations"][1]["value"]) for i, r in rows]


@torch.inference_mode()
def generate_answers(
    model,
    processor,
    source: ConversationDataset,
    items: Sequence[Item],
    *,
    batch_size: int = 50,
    max_new_tokens: int = 24,
) -> list[str]:
    """Greedy answers to the items, in their order, generated in left-padded batches."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    said = []
    for start in tqdm(range(0, len(items), batch_size), desc="answering", leave=False, delay=5):
        batch = items[start : start + batch_size]
        pictured = [source.is_multimodal[item.row] for item in batch]
        prompts = [render_prompt([{"from": "human", "value": item.question}], processor.tokenizer) for item in batch]
        inputs = processor(
            images=[source.load_image(item.row) for item, has in zip(batch, pictured, strict=True) if has],
            text=[("<image>" if has else "") + p for p, has in zip(prompts, pictured, strict=True)],
        ).to(device)
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        said += processor.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(training)
    return [text.strip() for text in said]


def accuracy(answers: Sequence[str], items: Sequence[Item]) -> float:
    """Share of answers equal to the expected ones, but for case, outer blanks and a final period."""
    return sum(_plain(a) == _plain(item.answer) for a, item in zip(answers, items, strict=True)) / len(items)


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


def scores(held_out: str, items, before: Sequence[str], after: Sequence[str]) -> dict:
    """Accuracy on the held-out questions before and after, beside the answer-prior baseline."""
    return {
        "held_out_accuracy_before": accuracy(before, items),
        "held_out_accuracy_after": accuracy(after, items),
        "prior_baseline_accuracy": prior_accuracy(Path(held_out), items),
        "held_out_questions": len(items),
    }


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").lower()
