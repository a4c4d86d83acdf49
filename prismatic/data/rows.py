"""The batches of a finetune: which rows every optimizer step sees, and how they become tensors."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from torch.utils.data import IterableDataset
from tqdm import tqdm

from prismatic.data import batching, samplers
from prismatic.data.conversation_source import ConversationSource
from prismatic.models.processing import encode_counting


@dataclass(frozen=True)
class FinetuneBatches:
    """This process's micro-batches of a finetune with the settings `config`."""

    config: object
    source: ConversationSource
    processor: object
    rank: int
    world: int

    @property
    def accumulation(self) -> int:
        """Micro-batches of this process that make an optimizer step."""
        config = self.config
        return samplers.accumulation_steps(config.global_batch_size, self.world, config.per_device_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        return len(self.plan(0)) // self.accumulation

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._length[0]

    @property
    def _length(self) -> tuple[int, int]:
        return samplers.training_length(self.config.epochs, self.config.max_steps, self.steps_per_epoch)

    def describe(self) -> str:
        """Steps, passes and rows, in a line."""
        return f"{self.steps:,} steps, {self.steps / self.steps_per_epoch:.3g} passes over {len(self.source):,} rows"

    def plan(self, epoch: int) -> list:
        """The rows of every micro-batch of an epoch."""
        config, size = self.config, self.config.global_batch_size
        if config.data.sampler == "shuffle":
            rows = samplers.shuffle_indices(len(self.source), size, config.seed, epoch)
        else:
            images, lengths = self.source.image_counts, self.source.word_counts
            rows = samplers.split_modality_indices(images, lengths, size, self.world, config.seed, epoch)
        return samplers.micro_batches(rows, self.rank, self.world, size, config.per_device_batch_size)

    def epochs(self, done_steps: int = 0) -> Iterator:
        """Number and loader of each epoch, without the first `done_steps` optimizer steps."""
        examples, collate = self._reading()
        return batching.epoch_loaders(
            lambda epoch: examples, collate, self.plan, self._length[1], self.config.data.workers, self.config.seed,
            done=done_steps * self.accumulation,
        )  # fmt: skip

    def _reading(self) -> tuple[batching.TrainingExamples, Callable]:
        """What makes examples of rows, and batches of examples."""
        config, processor = self.config, self.processor
        encode = partial(encode_counting, processor=processor, max_length=config.max_length, stage=config.stage)
        transform = processor.image_processor.transform
        examples = batching.TrainingExamples(self.source, encode, transform, config.data.on_bad_image)
        padded = partial(batching.collate_padded, pad_token_id=processor.tokenizer.pad_token_id)
        return examples, batching.collate_packed if config.data.packing else padded


class StreamedExamples(IterableDataset):
    """The examples of one process: its contiguous share of every `global_batch_size` rows of the shuffled stream.

    All processes read all rows, and decode the images of their own alone. A run that continues reads the rows that were
    taken once more: the state of a shuffled stream of `datasets` (5.2) does not hold what lies in its buffer, and
    another order would follow.
    """

    def __init__(
        self, examples: batching.TrainingExamples, seed: int, rows: range, global_batch_size: int, rank: int, world: int
    ):
        """Takes what makes examples of rows, the run's seed, the places of rows in the stream, and who takes which."""
        self.examples, self.seed, self.rows = examples, seed, rows
        self.global_batch_size, self.rank, self.world = global_batch_size, rank, world

    def __iter__(self) -> Iterator[batching.Example | None]:
        source, share = self.examples.source, self.global_batch_size // self.world
        stream = source.shuffled(self.seed)
        taken = islice(stream, self.rows.start)
        for _ in tqdm(
            taken, "skipping rows that were trained on", self.rows.start, delay=5, leave=False, disable=self.rank > 0
        ):
            pass
        for number, row in zip(self.rows, stream, strict=False):
            if number % self.global_batch_size // share == self.rank:
                read = source.read(row, number)
                yield self.examples.encoded(read.row, partial(source.decode, read))


class StreamedBatches(FinetuneBatches):
    """This process's micro-batches of a `StreamedSource`, all of which are one epoch.

    Step s takes the rows from s * global_batch_size on of one order, whatever the number of processes.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the whole run: nobody knows when a stream ends."""
        return self.config.max_steps

    def describe(self) -> str:
        """Steps and rows, in a line."""
        return f"{self.steps:,} steps, {self.steps * self.config.global_batch_size:,} rows of a stream"

    def epochs(self, done_steps: int = 0) -> Iterator:
        """Number and loader of the one epoch, without the first `done_steps` optimizer steps."""
        if done_steps == self.steps:
            return
        config, (examples, collate) = self.config, self._reading()
        size = config.global_batch_size
        rows = range(done_steps * size, self.steps * size)
        stream = StreamedExamples(examples, config.seed, rows, size, self.rank, self.world)
        # One worker at most: a second one would have to read all rows again to take its own.
        workers, each = min(1, config.data.workers), config.per_device_batch_size
        yield 0, batching.loader(stream, collate, workers, config.seed, batch_size=each)


def batches_of(config, source: ConversationSource, processor, rank: int, world: int) -> FinetuneBatches:
    """The batches of a finetune with the settings `config`, of a source as `open_data` gives it."""
    kind = StreamedBatches if config.data.streaming else FinetuneBatches
    return kind(config, source, processor, rank, world)
