"""Scores of multiple choice whose options differ from question to question, and of questions that count together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

from eval.scoring.means import Metrics, accuracy, accuracy_alone, by_info, by_subset, mean, over_subsets, split, wholes
from eval.scoring.naming import find_choice
from eval.scoring.scorers import likeliest
from eval.task import Example, Record, Scorer


def multiple_choice(main: str = "accuracy", *, by: Sequence[str] = (), about: str = "likeliest option") -> Scorer:
    """Accuracy of the likeliest option; where the answer is a text, of the option that it names (`find_choice`).

    Examples' answers are letters, which stand for `info["choices"]`; where there are no choices, texts that have to be
    said word for word, whatever their case. Reported besides: means over subsets (see `subset_means`), and the share of
    those answers that were read from texts which names no option (`parse_failures`).

    Args:
        main: Name of the metric that stands for the task.
        by: Names in examples' `info` by whose values accuracy is reported too, as `accuracy/name/value`.
        about: What counts as right.
    """

    def judge(record: Record) -> Record:
        if not record["info"]["choices"]:
            words = "" if record.get("error") else record["output"].strip().removesuffix(".").lower()
            return {"score": float(words == record["answer"].strip().lower()), "choice": words}
        options = list(record.get("options") or ())
        chosen = likeliest(record, options)
        said = None if chosen is None else options.index(chosen)
        if said is None and not record.get("error"):
            said = find_choice(record["output"], record["info"]["choices"])
        letter = None if said is None else ascii_uppercase[said]
        return {"score": float(letter == record["answer"]), "choice": letter}

    def measure(records: Sequence[Record]) -> Metrics:
        texts = [r for r in records if not r.get("options") or not (r.get("probabilities") or r.get("error"))]
        unread = {"parse_failures": mean(r["choice"] is None for r in texts)} if texts else {}
        return {"accuracy": accuracy(records)} | unread

    def summarise(records: Sequence[Record]) -> Metrics:
        summary = by_subset(records, measure) | by_info(records, by)
        return summary | over_subsets(records, summary)

    return Scorer(main, judge, summarise, about)


def grouped(scorer: Scorer, name: str, *, main: bool = False, by: Sequence[str] = ()) -> Scorer:
    """A scorer that also reports `NAME_accuracy`: the share of groups of which every question scores 1.

    Besides, as of single questions, by subset and means over subsets (`mean_NAME_accuracy`).

    Args:
        scorer: Of the single questions.
        name: Of these groups, and of what in examples' `info` says which one a question is in.
        main: Whether this metric stands for the task.
        by: Names in examples' `info` by whose values it is reported too, as `NAME_accuracy/name/value`.
    """
    metric = f"{name}_accuracy"

    def judge(record: Record) -> Record:
        judged = scorer.judge(record)
        return judged | {"groups": judged.get("groups", {}) | {name: record["info"][name]}}

    def summarise(records: Sequence[Record]) -> Metrics:
        groups = wholes(records, name)
        shares = by_subset(groups, lambda some: {metric: accuracy(some)}) if groups else {metric: None}
        shares |= by_info(groups, by, metric) | over_subsets(groups, shares, metric)
        return scorer.summarise(records) | shares

    names = (*scorer.groups, name)
    return replace(scorer, main=metric if main else scorer.main, judge=judge, summarise=summarise, groups=names)


def guessed(examples: Sequence[Example], group: str | None = None) -> float:
    """The expected score of guessing among each example's `info["choices"]`: the mean over subsets of their means.

    Args:
        examples: At least one.
        group: Name in `info` of what counts only together: the mean over groups of the chance that all are right.
    """
    if group is None:
        records = [{"subset": e.subset, "score": 1 / len(e.info["choices"])} for e in examples]
        means = by_subset(records, accuracy_alone)
        return over_subsets(records, means).get("mean_accuracy", means["accuracy"])
    groups = split(examples, lambda example: example.info[group])
    return mean(math.prod(1 / len(e.info["choices"]) for e in its) for its in groups.values())
