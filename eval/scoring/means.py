"""Means of judged records, and of their subsets."""

from collections.abc import Callable, Iterable, Sequence

from eval.task import Record

Metrics = dict[str, float | None]


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None


def accuracy(records: Sequence[Record]) -> float | None:
    """The mean score."""
    return mean(r["score"] for r in records)


def accuracy_alone(records: Sequence[Record]) -> Metrics:
    """The mean score as the only metric."""
    return {"accuracy": accuracy(records)}


def split(records: Sequence[Record], key: Callable) -> dict[str, list[Record]]:
    """Records by what `key` gives of them."""
    parts: dict = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    return parts


def by_subset(records: Sequence[Record], measure: Callable[[Sequence[Record]], Metrics]) -> Metrics:
    """Metrics of all records, then of each subset as `metric/subset`."""
    metrics = measure(records) if records else {"accuracy": None}
    for subset, part in split(records, lambda r: r["subset"]).items():
        metrics |= {f"{name}/{subset}": value for name, value in measure(part).items()} if subset else {}
    return metrics


def by_info(records: Sequence[Record], names: Sequence[str], metric: str = "accuracy") -> Metrics:
    """The mean score by values in records' `info`, as `metric/name/value`."""
    metrics = {}
    for name in names:
        values = split(records, lambda r, name=name: r["info"].get(name))
        metrics |= {f"{metric}/{name}/{value}": accuracy(rs) for value, rs in values.items() if value is not None}
    return metrics


def over_subsets(records: Sequence[Record], metrics: Metrics, metric: str = "accuracy") -> Metrics:
    """Means over subsets of a metric that `metrics` has of each, as `mean_METRIC`; see `subset_means`."""
    subsets = dict.fromkeys(record["subset"] for record in records if record["subset"])
    return {
        name.replace("accuracy", metric, 1): sum(
            share * metrics[f"{metric}/{subset}"] for subset, share in shares.items()
        )
        for name, shares in (subset_means(subsets).items() if subsets else ())
    }


def wholes(records: Sequence[Record], name: str) -> list[Record]:
    """A record for each group called `name`, about all of its images, that scores 1 if all of the group do."""
    found = []
    for group in split(records, lambda record: record["groups"][name]).values():
        images = dict.fromkeys(i for r in group for i in (r["image"], *r.get("more_images", ())))
        others = [image for image in images if image != group[0]["image"]]
        found.append(group[0] | {"score": float(min(r["score"] for r in group) == 1), "more_images": others})
    return found


def subset_means(subsets: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means over subsets, whatever their sizes, by name: `mean_accuracy`, and the share that each subset has in it.

    A slash makes subsets of subsets, which are averaged first: of `2D/a`, `2D/b` and `3D/c` the shares are a quarter, a
    quarter and a half, and there is `mean_accuracy/2D` besides.
    """
    subsets = list(subsets)
    means = {"mean_accuracy": _shares(subsets)}
    for head in dict.fromkeys(subset.partition("/")[0] for subset in subsets if "/" in subset):
        below = _shares([subset for subset in subsets if subset.partition("/")[0] == head])
        means |= {f"mean_accuracy/{head}": below} if len(below) > 1 else {}
    return means


def _shares(subsets: Sequence[str]) -> dict[str, float]:
    below = split(subsets, lambda subset: subset.partition("/")[0])
    shares = {}
    for head, its in below.items():
        inner = {"": 1.0} if its == [head] else _shares([subset.partition("/")[2] for subset in its])
        shares |= {f"{head}/{rest}" if rest else head: share / len(below) for rest, share in inner.items()}
    return shares
