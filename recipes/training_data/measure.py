"""Numbers about training rows: lengths in tokens, what is supervised, what is cut off, which answers are frequent."""

from collections import Counter
from typing import Any

import numpy as np

from prismatic.data.llava_rows import row_problems
from prismatic.models.processing import encode_counting
from prismatic.text.conversations import IGNORE_INDEX
from prismatic.text.prompts import ROLES
from prismatic.text.visible import visible
from recipes.training_data.shown_rows import STAGE

MEASURED = 2000  # rows that are tokenized
BARS = 24
FREQUENT, LONGEST = 20, 80  # answers, and characters of them


def measured(source, rows: list[int], processor, max_length: int) -> dict[str, Any]:
    """Statistics of some rows of a data set; `modalities` are those of all its rows. What goes into tables is text."""
    answers: Counter[str] = Counter()
    lengths, words, supervised, seen, cut_rows, cut_tokens, refused = [], [], 0, 0, 0, 0, 0
    for number in rows:
        row = source[number]
        try:
            ids, labels, cut = encode_counting(row, processor, max_length, STAGE)
        except ValueError:
            labels = []
        if not labels or any(row_problems(row)):
            refused += 1
            continue
        said = [turn["value"].strip() for turn in row["conversations"] if ROLES.get(turn["from"]) == "assistant"]
        answers.update(said)
        words += [len(answer.split()) for answer in said]
        lengths.append(len(ids) - ids.count(processor.image_token_id) + cut)
        supervised += sum(label != IGNORE_INDEX for label in labels)
        seen += len(ids)
        cut_rows, cut_tokens = cut_rows + (cut > 0), cut_tokens + cut
    images = source.image_counts
    return {
        "rows": len(rows),
        "refused": refused,
        "modalities": [
            (name, f"{found.sum():,}", f"{found.mean():.1%}")
            for name, found in (("text only", images == 0), ("one image", images == 1), ("several", images > 1))
        ],
        "lengths": summary(lengths),
        "histogram": histogram(lengths, max_length),
        "image_tokens": processor.num_image_tokens,
        "supervised": supervised,
        "seen": seen,
        "cut_rows": cut_rows,
        "cut_tokens": cut_tokens,
        "answers": [
            (_short(text), f"{count:,}", f"{count / len(words):.1%}") for text, count in answers.most_common(FREQUENT)
        ],
        "num_answers": len(words),
        "mean_words": float(np.mean(words)) if words else 0.0,
    }


def summary(lengths: list[int]) -> list[tuple[str, str]]:
    """Least, median, 95th percentile and greatest of some lengths."""
    if not lengths:
        return []
    names = ("shortest", "median", "95 of 100 are at most", "longest")
    values = np.percentile(lengths, (0, 50, 95, 100), method="higher")
    return [(name, f"{value:,}") for name, value in zip(names, values, strict=True)]


def histogram(lengths: list[int], max_length: int) -> dict[str, Any]:
    """Bars of equal width: `[first, last, rows]` each; the last one also counts what is longer than its end.

    `limit` is where `max_length` lies, in bars from the left; None where it lies beyond them.
    """
    reach = int(np.percentile(lengths, 99)) + 1 if lengths else 1
    step = next(
        nice for power in range(9) for nice in (10**power, 2 * 10**power, 5 * 10**power) if nice * BARS >= reach
    )
    count = -(-reach // step)
    places = np.minimum(np.asarray(lengths, int) // step, count - 1)
    rows = np.bincount(places, minlength=count).tolist()
    bars = [[place * step, (place + 1) * step - 1, number] for place, number in enumerate(rows)]
    longer = sum(length > bars[-1][1] for length in lengths)
    limit = max_length / step
    return {"bars": bars, "highest": max(rows), "longer": longer, "limit": limit if limit <= count else None}


def _short(text: str) -> str:
    return visible(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") or "(empty)"
