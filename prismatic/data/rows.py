"""The batches of a finetune: which rows every optimizer step sees, and how they become tensors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

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
        config, processor = self.config, self.processor
        encode = partial(encode_counting, processor=processor, max_length=config.max_length, stage=config.stage)
        transform = processor.image_processor.transform
        examples = batching.TrainingExamples(self.source, encode, transform, config.data.on_bad_image)
        padded = partial(batching.collate_padded, pad_token_id=processor.tokenizer.pad_token_id)
        collate = batching.collate_packed if config.data.packing else padded
        return batching.epoch_loaders(
            lambda epoch: examples, collate, self.plan, self._length[1], config.data.workers, config.seed,
            done=done_steps * self.accumulation,
        )  # fmt: skip
