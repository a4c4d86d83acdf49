"""How outputs become scores. Metrics are fractions, not percent, and never rounded.

Every metric is reported over all records and, where records have subsets, for each of them as `metric/subset`.
"""

import math
from collections.abc import Callable, Sequence

from eval.scoring.means import Metrics, accuracy, accuracy_alone, by_info, by_subset, mean
from eval.task import Record, Scorer
from prismatic.text import parsing

SCALES = ("1", "100", "1000", "pixels")


def iou_at(threshold: float) -> Scorer:
    """Share of boxes whose intersection over union with the true box is at least `threshold`.

    Outputs count if they are as a whole a list of four fractions (`parse_box`). Beside that: the share of outputs that
    are not (`parse_failures`), and `lenient_accuracy`, of the first box found in each output, on whichever one scale
    (fractions, 0-100, 0-1000, pixels) suits the outputs best. Examples' answers are [x1, y1, x2, y2], fractions.
    """

    def judge(record: Record) -> Record:
        text = "" if record.get("error") else record["output"]
        box, found = parsing.parse_box(text), parsing.find_box(text)
        box = box and _to_image(box, record)
        lenient = [] if found is None else [(scale, _on_scale(found, scale, record)) for scale in SCALES]
        overlap = parsing.iou(box, record["answer"]) if box else 0.0
        return {
            "score": float(overlap >= threshold),
            "box": box,
            "iou": overlap,
            "lenient_iou": {scale: parsing.iou(b, record["answer"]) for scale, b in lenient if b},
        }

    def measure(records: Sequence[Record]) -> Metrics:
        return {
            "accuracy": accuracy(records),
            "mean_iou": mean(r["iou"] for r in records),
            "parse_failures": mean(r["box"] is None for r in records),
            "lenient_accuracy": max(
                mean(r["lenient_iou"].get(scale, 0.0) >= threshold for r in records) for scale in SCALES
            ),
        }

    return Scorer("accuracy", judge, lambda records: by_subset(records, measure), f"IoU >= {threshold}")


def choice(options: Sequence[str], *, counts: bool = False) -> Scorer:
    """Accuracy of the likeliest option, and how well probabilities rank: ROC-AUC and average precision.

    With two options both rank by the probability of the first; with more, ROC-AUC is the mean over pairs of options
    and average precision the mean over options. Both are None unless every option is the truth at least once.

    Args:
        options: What can be chosen; examples' answers are among them.
        counts: Options stand for 0, 1, 2, ...: root mean squared error is reported too.
    """
    options = tuple(options)

    def judge(record: Record) -> Record:
        chosen = likeliest(record, options)
        if chosen is None and not record.get("error"):
            said = parsing.parse_choice(record["output"], options)
            chosen = None if said is None else options[said]
        return {"score": float(chosen == record["answer"]), "choice": chosen}

    def squared_error(record: Record) -> float:
        truth = options.index(record["answer"])
        worst = max(truth, len(options) - 1 - truth)
        return (worst if record["choice"] is None else options.index(record["choice"]) - truth) ** 2

    def measure(records: Sequence[Record]) -> Metrics:
        metrics = {"accuracy": accuracy(records)} | _ranking(records, options)
        return metrics | ({"rmse": math.sqrt(mean(map(squared_error, records)))} if counts else {})

    about = f"likeliest of {len(options)} options"
    return Scorer("accuracy", judge, lambda records: by_subset(records, measure), about)


def yes_no() -> Scorer:
    """POPE's metrics; the main one is the mean over subsets, whatever their sizes, of accuracy.

    Examples' answers are "Yes" or "No". An output without probabilities is read by POPE's official rule. Precision,
    recall and F1 are of "Yes"; `yes_ratio` is the share of it among the outputs.
    """
    options = ("Yes", "No")

    def judge(record: Record) -> Record:
        chosen = likeliest(record, options)
        if chosen is None and not record.get("error"):
            chosen = "No" if parsing.says_no(record["output"]) else "Yes"
        return {"score": float(chosen == record["answer"]), "choice": chosen}

    def said_yes(record: Record) -> bool:  # what cannot be answered counts as the wrong answer
        return record["choice"] == "Yes" if record["choice"] else record["answer"] == "No"

    def measure(records: Sequence[Record]) -> Metrics:
        precision = mean(r["answer"] == "Yes" for r in records if said_yes(r))
        recall = mean(said_yes(r) for r in records if r["answer"] == "Yes")
        undefined = precision is None or recall is None
        return {
            "accuracy": accuracy(records),
            "precision": precision,
            "recall": recall,
            "f1": None if undefined else 2 * precision * recall / (precision + recall) if recall else 0.0,
            "yes_ratio": mean(map(said_yes, records)),
        } | _ranking(records, options)

    def summarise(records: Sequence[Record]) -> Metrics:
        summary = by_subset(records, measure)
        subsets = dict.fromkeys(r["subset"] for r in records)
        overall = mean(summary.get(f"accuracy/{subset}", summary["accuracy"]) for subset in subsets)
        return {"mean_accuracy": overall} | summary

    return Scorer("mean_accuracy", judge, summarise, "yes or no, mean of subsets")


def vqa_accuracy(
    normalise_prediction: Callable[[str], str],
    normalise_truth: Callable[[str], str],
    *,
    groups: Sequence[str] = (),
    unanswerable: bool = False,
) -> Scorer:
    """VQA soft accuracy: an answer that three others gave is right, one that fewer gave in part.

    The mean, over leaving out each of the people asked, of min(matches among the others / 3, 1). Examples' answers are
    lists of what people said.

    Args:
        normalise_prediction: Applied to outputs.
        normalise_truth: Applied to people's answers.
        groups: Names in examples' `info` by whose values accuracy is reported too, as `accuracy/name/value`.
        unanswerable: Report average precision and F1 of the output "unanswerable", against `info["answerable"]`.
    """

    def judge(record: Record) -> Record:
        if record.get("error"):
            return {"score": 0.0, "normalised": None}
        said = normalise_prediction(record["output"])
        agrees = [normalise_truth(answer) == said for answer in record["answer"]]
        score = mean(min(1.0, (sum(agrees) - agree) / 3) for agree in agrees)
        return {"score": score or 0.0, "normalised": said}  # None where nobody answered

    def summarise(records: Sequence[Record]) -> Metrics:
        summary = by_subset(records, accuracy_alone) | by_info(records, groups)
        return summary | (_unanswerable(records) if unanswerable else {})

    return Scorer("accuracy", judge, summarise, "VQA soft accuracy")


def exact_match(normalise_prediction: Callable[[str], str] = str.strip) -> Scorer:
    """Share of outputs that, normalised, equal the answer."""

    def judge(record: Record) -> Record:
        said = None if record.get("error") else normalise_prediction(record["output"])
        return {"score": float(said == record["answer"]), "normalised": said}

    return Scorer("accuracy", judge, lambda records: by_subset(records, accuracy_alone), "exact match")


def _to_image(box: parsing.Box, record: Record) -> parsing.Box:
    """A box in fractions of what `box_frame` says, in fractions of the image."""
    frame = record.get("box_frame", "image")
    if frame == "image":
        return box
    if frame != "padded-square":
        raise ValueError(f"box_frame is '{frame}': expected 'image' or 'padded-square'")
    if "width" not in record["info"]:
        raise ValueError("boxes in a padded square need the image's size: evaluate the raw download, which has it")
    return parsing.from_padded_square(box, record["info"]["width"], record["info"]["height"])


def _on_scale(box: parsing.Box, scale: str, record: Record) -> parsing.Box | None:
    """A box whose numbers are on `scale`, in fractions of the image; None where that needs an unknown image size."""
    if scale != "pixels":
        return _to_image([value / int(scale) for value in box], record)
    width, height = record["info"].get("width"), record["info"].get("height")
    if not width:
        return None
    if record.get("box_frame", "image") == "padded-square":
        width = height = max(width, height)
    x1, y1, x2, y2 = box
    return _to_image([x1 / width, y1 / height, x2 / width, y2 / height], record)


def _probabilities(record: Record, options: Sequence[str]) -> list[float] | None:
    """Probabilities of the options; None where a record has none that can be."""
    p = record.get("probabilities")
    usable = not record.get("error") and p and len(p) == len(options) and math.isclose(sum(p), 1, abs_tol=1e-2)
    return p if usable else None


def likeliest(record: Record, options: Sequence[str]) -> str | None:
    """The likeliest option, the first of equals; None for a record without probabilities."""
    p = _probabilities(record, options)
    return options[p.index(max(p))] if p else None


def _ranking(records: Sequence[Record], options: Sequence[str]) -> Metrics:
    """ROC-AUC and average precision; None where an option is never the truth, or no record has probabilities.

    A record without probabilities counts as sure of wrong options.
    """
    truths = [options.index(r["answer"]) for r in records]
    rows = [_probabilities(r, options) for r in records]
    if len(set(truths)) < len(options) or not any(rows):
        return {"roc_auc": None, "average_precision": None}
    import numpy as np
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = np.eye(len(options))[truths]
    p = np.array([row or (1 - t) / (len(options) - 1) for row, t in zip(rows, truth, strict=True)])
    if len(options) == 2:
        roc_auc, truth, p = roc_auc_score(truth[:, 0], p[:, 0]), truth[:, 0], p[:, 0]
    else:
        roc_auc = roc_auc_score(truths, p / p.sum(axis=1, keepdims=True), multi_class="ovo")
    return {"roc_auc": float(roc_auc), "average_precision": float(average_precision_score(truth, p))}


def _unanswerable(records: Sequence[Record]) -> Metrics:
    """How well "unanswerable" is said of what is; a record with an error counts as wrong. None if all is answerable."""
    names = ("unanswerable_average_precision", "unanswerable_f1")
    truth = [not r["info"]["answerable"] for r in records]
    if not any(truth):
        return dict.fromkeys(names)
    from sklearn.metrics import average_precision_score, f1_score

    said = [
        (r["normalised"] == "unanswerable") if not r.get("error") else not t
        for r, t in zip(records, truth, strict=True)
    ]
    return dict(zip(names, (float(average_precision_score(truth, said)), float(f1_score(truth, said))), strict=True))
