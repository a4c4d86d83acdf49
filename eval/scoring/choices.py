"""Scores of multiple choice whose options differ from question to question, and of questions that count together."""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

from eval.scoring import parsing
from eval.scoring.means import Metrics, accuracy, by_info, by_subset, mean, split, subset_means
from eval.scoring.scorers import likeliest
from eval.task import Record, Scorer


def multiple_choice(main: str = "accuracy", *, by: Sequence[str] = (), about: str = "likeliest option") -> Scorer:
    """Accuracy of the likeliest option; where the answer is a text, of the option that it names (`find_choice`).

    Examples' answers are letters, which stand for `info["choices"]`; where there are no choices, texts that have to be
    said word for word, whatever their case. Reported besides: means over subsets (see `subset_means`), and the share of
    texts that name no option (`parse_failures`).

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
            said = parsing.find_choice(record["output"], record["info"]["choices"])
        letter = None if said is None else ascii_uppercase[said]
        return {"score": float(letter == record["answer"]), "choice": letter}

    def measure(records: Sequence[Record]) -> Metrics:
        texts = [record for record in records if not record.get("options")]
        unread = {"parse_failures": mean(r["choice"] is None for r in texts)} if texts else {}
        return {"accuracy": accuracy(records)} | unread

    def summarise(records: Sequence[Record]) -> Metrics:
        summary = by_subset(records, measure) | by_info(records, by)
        subsets = dict.fromkeys(record["subset"] for record in records if record["subset"])
        for name, shares in subset_means(subsets).items() if subsets else ():
            summary[name] = sum(share * summary[f"accuracy/{subset}"] for subset, share in shares.items())
        return summary

    return Scorer(main, judge, summarise, about)


def grouped(scorer: Scorer, name: str, *, main: bool = False) -> Scorer:
    """A scorer that also reports `NAME_accuracy`: the share of groups of which every question scores 1.

    Args:
        scorer: Of the single questions.
        name: Of these groups, and of what in examples' `info` says which one a question is in.
        main: Whether this metric stands for the task.
    """
    metric = f"{name}_accuracy"

    def judge(record: Record) -> Record:
        judged = scorer.judge(record)
        return judged | {"groups": judged.get("groups", {}) | {name: record["info"][name]}}

    def summarise(records: Sequence[Record]) -> Metrics:
        groups = split(records, lambda record: record["groups"][name])
        wholes = [group[0] | {"score": float(min(r["score"] for r in group) == 1)} for group in groups.values()]
        shares = by_subset(wholes, lambda some: {metric: accuracy(some)}) if wholes else {metric: None}
        return scorer.summarise(records) | shares

    names = (*scorer.groups, name)
    return replace(scorer, main=metric if main else scorer.main, judge=judge, summarise=summarise, groups=names)
