"""What a benchmark is: a declaration that the engine, the scorers and the report work from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vision_backbones.safe_images import leads_out

Record = dict[str, Any]


@dataclass(frozen=True)
class Generate:
    """The answer is free text, decoded greedily."""

    max_new_tokens: int = 128


@dataclass(frozen=True)
class Choose:
    """The answer is one of `options`, texts that the model would say; decided by their probabilities, no decoding."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A question about an image, or about several.

    Attributes:
        id: Unique in the task and split, stable between runs and machines.
        image: Path relative to the data root, with forward slashes; or what `eval.data.embedded` calls an image inside
            a file, such as `cv-bench/test_2d.parquet#17/image`.
        question: As the data set has it.
        answer: The truth, JSON-able, as the scorer takes it.
        subset: Sub-split that scores are also reported for, such as RefCOCO+; empty without any.
        info: What prompt, scorer and report need besides, JSON-able (`width`, `height`, `choices`, ...).
        more_images: Those that are shown after the first, in this order.

    Raises:
        ValueError: A text is none, or an image's path leads out of the data root.
    """

    id: str
    image: str
    question: str
    answer: Any
    subset: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    more_images: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuses what rows of strangers may hold and no prompt or path can."""
        texts = [(name, getattr(self, name)) for name in ("id", "image", "question", "subset")]
        for name, value in (*texts, *(("image", image) for image in self.more_images)):
            if not isinstance(value, str) or not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise ValueError(f"{name} {ascii(value)[:80]}, expected a string")
        for image in filter(leads_out, self.images):
            raise ValueError(f"image {image[:80]!r}, expected a path inside the data root")

    @property
    def images(self) -> tuple[str, ...]:
        """All that is shown, in this order."""
        return (self.image, *self.more_images)

    def record(self) -> Record:
        """The fields, JSON-able; without `more_images` where there are none."""
        fields = asdict(self) | {"more_images": list(self.more_images)}
        return fields if self.more_images else {k: v for k, v in fields.items() if k != "more_images"}


@dataclass(frozen=True)
class Scorer:
    """How outputs become scores.

    A record is an example's fields and the model's output: `output` (text; empty after an error), and for `Choose`
    also `probabilities`, a list in the order of the options. `box_frame` says what box coordinates are fractions of:
    "image" (also when absent) or "padded-square". A record with an `error` counts as wrong.

    Attributes:
        main: Name of the metric that stands for the task.
        judge: Returns what is to be added to a record: `score` in [0, 1], and details such as the parsed box.
        summarise: Metrics of judged records, by name; None where one is undefined on these. A metric of one subset is
            named `metric/subset`.
        about: What counts as right, in a few words for people.
        groups: Names in examples' `info` of what counts only together, such as `pair`; limits take whole ones.
    """

    main: str
    judge: Callable[[Record], dict[str, Any]]
    summarise: Callable[[Sequence[Record]], dict[str, float | None]]
    about: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        name: Id on the command line.
        version: Raised whenever prompts, examples or scores change; stored answers of another version are not used.
        read: Examples of a split, in a fixed order, from the downloads below a data root.
        prompt: What the user says, before the model's chat template.
        answer: Kind of answer to an example.
        scorer: How outputs become scores.
        num_examples: Official number of examples, by split and then by subset ("" for the whole split where the sizes
            of subsets are not published, nothing where its own is not); the first split is the default.
        slim: Examples of the slim variant, a fixed random subset: so many of each subset.
        files: What must be on disk, relative to the data root.
        chance: Score of guessing, a fraction, or a function of the examples that gives it; None where guessing scores
            nothing or is not defined.
        majority: Score of always giving the commonest answer of the official test set, where that is published.
        split: The split that is evaluated.
        of_splits: By split the fields that differ in it, such as its chance.
        image_of: How an example's picture differs from its file: PIL image and example in, PIL image out. All examples
            of an image must give the same picture.
        variants: Other ways to ask the same, by name: the fields that differ. A user writes `task+variant`; of several
            the fields of those that are declared later hold.
        lacking: Of a data root, a split and its examples, what is missing that their number does not show, a line each.
        licence: Of the data, as far as it is known.
        note: What whoever reads a score of it should know.
    """

    name: str
    version: int
    read: Callable[[Path, str], list[Example]]
    prompt: Callable[[Example], str]
    answer: Callable[[Example], Generate | Choose]
    scorer: Scorer
    num_examples: dict[str, dict[str, int]]
    slim: int = 1024
    files: tuple[str, ...] = ()
    chance: float | Callable[[Sequence[Example]], float] | None = None
    majority: float | None = None
    split: str = ""
    of_splits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    image_of: Callable | None = None
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lacking: Callable[[Path, str, Sequence[Example]], list[str]] | None = None
    licence: str = ""
    note: str = ""

    def guessing(self, examples: Sequence[Example]) -> float | None:
        """Score of guessing on these examples."""
        return self.chance(examples) if callable(self.chance) else self.chance


TASKS: dict[str, Task] = {}  # by name; `eval.tasks` finds those that are shipped


def register(task: Task) -> Task:
    """Makes a task known by its name.

    Raises:
        ValueError: The name is taken, or has a colon or plus, which stand before a split and a variant.
    """
    if task.name in TASKS:
        raise ValueError(f"task '{task.name}' is registered already: choose another name")
    if {*":+"} & {*task.name} or not task.num_examples:
        raise ValueError(
            f"task '{task.name}': expected a name without colon and plus, and at least one split in num_examples"
        )
    TASKS[task.name] = replace(task, split=task.split or next(iter(task.num_examples)))
    return TASKS[task.name]
