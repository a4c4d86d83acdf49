"""What belongs together: questions of one image or one group, which are drawn, and left out, together."""

from collections.abc import Hashable, Iterable, Sequence

from eval.task import Record


def units(labels: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each member the first one that it is connected with: by a common label, or by others' common labels."""
    first: dict[Hashable, int] = {}
    above = list(range(len(labels)))

    def root(member: int) -> int:
        while above[member] != member:
            above[member] = above[above[member]]
            member = above[member]
        return member

    for member, its in enumerate(labels):
        for label in its:
            one, other = sorted((root(first.setdefault(label, member)), root(member)))
            above[other] = one
    return [root(member) for member in range(len(labels))]


def units_of(records: Sequence[Record]) -> list[int]:
    """The unit that each judged record belongs to: those with a common image, or in the same group, are of one."""
    return units([
        [("", str(r["image"])), *(("", i) for i in r.get("more_images", ())), *r.get("groups", {}).items()]
        for r in records
    ])  # fmt: skip
