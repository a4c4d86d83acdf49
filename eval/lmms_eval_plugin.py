"""The model `prismatic` of lmms-eval: its benchmarks, answered by the engine that `prismatic evaluate` uses.

lmms-eval finds it by the entry point in `setup.py`. Nothing else of ours imports this file, which needs lmms-eval.
"""

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image
from tqdm import tqdm

from eval.engine import Answer
from eval.generate_engine import PlainEngine, load_engine
from eval.runner import answer_within_memory
from eval.task import Generate
from prismatic.models.image_processing import read_image
from prismatic.models.modeling import PrismaticForConditionalGeneration
from prismatic.models.padding import padding_problem
from prismatic.models.self_check import context_of
from prismatic.text.chat import as_text_messages
from prismatic.text.conversations import encode_prompt
from vision_backbones.names import suggest
from vision_backbones.safe_images import to_rgb

DTYPES = ("bfloat16", "float16", "float32")
AUTO_BATCH = 128  # the default of `prismatic evaluate`; lack of memory halves it
NEW_TOKENS = 1024  # of a task that names no limit
ROOM_STEP = 64  # tokens; answers cut by the context are cut alike, for requests of one limit share a batch
KNOWN = {"max_new_tokens", "until", "do_sample", "temperature", "num_beams", "repetition_penalty"}
WITHOUT_EFFECT = {"top_p", "top_k", "seed", "image_aspect_ratio"}  # on greedy decoding, or on our image transform
_told: set[str] = set()  # generation_kwargs that were said to be ignored


def manifest() -> Any:
    """The `ModelManifest` that lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest  # on import it asks for this function

    return ModelManifest(model_id="prismatic", chat_class_path=f"{__name__}.Prismatic")


@dataclass(frozen=True)
class Asked:
    """A request without its pictures, which are read again when they are due: memory would not hold all.

    Attributes:
        place: Where its answer goes.
        prompt: What the user says, or a conversation that ends with it.
        images: How many pictures come before the text.
        key: Equal for equal pictures.
        new: Most tokens of the answer.
        until: Texts before which the answer ends.
    """

    place: int
    prompt: str | list[dict]
    images: int
    key: bytes
    new: int
    until: tuple[str, ...]


# As much of a task as `answer_within_memory` takes.
_TASK: Any = SimpleNamespace(prompt=lambda asked: asked.prompt, answer=lambda asked: Generate(asked.new))


class Prismatic(lmms):
    """Answers the requests of lmms-eval as `prismatic evaluate` answers its own: in batches, each image encoded once.

    Args:
        pretrained: What `prismatic.load` takes: a run, a checkpoint, a saved model, a Hugging Face id.
        batch_size: Questions that are computed at once, or "auto".
        device: Where; by default the one that accelerate gives this process.
        dtype: Of the weights and of the computation: bfloat16, float16 or float32.
        prompt_style: Name or file of a chat template; "auto" keeps the model's own.
        base: Where what LoRA adapters adapt lies now, if it was moved.

    Raises:
        ValueError: There is no such model, it is of another kind, or a setting is none.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "bfloat16",
        prompt_style: str = "auto",
        base: str | None = None,
    ):
        super().__init__()
        if not pretrained:
            raise ValueError("no model: give --model_args pretrained=RUN, a run, a saved model or a Hugging Face id")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: {suggest(str(dtype), DTYPES)}")
        rows = AUTO_BATCH if batch_size == "auto" else int(batch_size) if str(batch_size).isdecimal() else 0
        if rows < 1:
            raise ValueError(f"batch_size is {batch_size!r}: expected a number of at least 1, or auto")
        self.accelerator = Accelerator()
        several = self.accelerator.num_processes > 1
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(self.accelerator.device if several or device is None else device)
        self.engine: Any = load_engine(
            str(pretrained),
            dtype=getattr(torch, dtype),
            device=self.device,
            batch_size=rows,
            prompt_style=prompt_style,
            base=base,
            say=self.accelerator.print,
        )
        if not isinstance(self.engine.model, PrismaticForConditionalGeneration):
            raise ValueError(f"{pretrained} is no Prismatic model: lmms-eval knows others by itself (lmms-eval models)")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers to `requests`, in their order.

        Raises:
            ValueError: A request asks for something else than greedy decoding, holds something else than text and
                images, or none of the requests could be answered.
        """
        reading = tqdm(enumerate(requests), total=len(requests), desc="reading", disable=self.rank != 0)
        asked = [self._read(place, request) for place, request in reading]
        answers: dict[int, Answer] = {}
        with ThreadPoolExecutor(1) as pool, tqdm(total=len(asked), desc="answers", disable=self.rank != 0) as bar:
            for engine, some in self._by_engine(asked):

                def load(group: list[Asked], engine=engine) -> Any:
                    pictures = self._messages(requests[group[0].place])[1]
                    return engine.prepare(pictures[0] if engine is self.engine else pictures)

                batches = list(_batches(some, engine.batch_size))
                coming = [pool.submit(load, group) for group in batches[0]]
                for batch, following in zip(batches, [*batches[1:], []], strict=True):
                    pictures = [future.result() for future in coming]
                    coming = [pool.submit(load, group) for group in following]
                    pairs: list = [(p, one) for p, group in zip(pictures, batch, strict=True) for one in group]
                    found = answer_within_memory(_TASK, engine, pairs)
                    answers.update((one.place, answer) for (_, one), answer in zip(pairs, found, strict=True))
                    bar.update(len(pairs))
        _check([answers[one.place] for one in asked])
        return [_cut(answers[one.place].text, one.until) for one in asked]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not there: see what it raises."""
        raise NotImplementedError(
            "loglikelihood is not supported: lmms-eval documents a log probability, but its scores of multiple choice "
            "take the smallest for the best; use a task that generates, or prismatic evaluate, which compares options"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: see what it raises."""
        raise NotImplementedError("tasks of several rounds are not supported: only generate_until is")

    def clean(self) -> None:
        """Frees the memory that the model takes; lmms-eval does so before it computes scores."""
        self.engine = None
        super().clean()

    def _messages(self, request: Instance) -> tuple[list[dict], list[Image.Image]]:
        """The conversation of a request and its pictures.

        Requests hold a function to messages, and options; where a task is named by its file or folder, lmms-eval hands
        over a text, options, and a function to pictures.
        """
        context, first, second, doc, task, split = request.args
        document = self.task_dict[task][split][doc]
        if callable(first):
            turns = first(document)
        else:
            parts = [{"type": "image", "url": visual} for visual in second(document) or []]
            turns = [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]
        try:
            messages, images = as_text_messages(turns, marks=False)
            return messages, [to_rgb(read_image(image)) for image in images]
        except ValueError as error:
            raise ValueError(f"task {task}, document {doc}: {error}") from error

    def _read(self, place: int, request: Instance) -> Asked:
        messages, pictures = self._messages(request)
        options, task = request.args[2 if callable(request.args[1]) else 1], request.args[4]
        _check_greedy(options, task)
        digest = blake2b(digest_size=16)
        for picture in pictures:
            digest.update(repr(picture.size).encode() + picture.tobytes())
        prompt = messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages
        until = options.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(stop for stop in until if stop)
        new = self._room(prompt, len(pictures), int(options.get("max_new_tokens", NEW_TOKENS)))
        return Asked(place, prompt, len(pictures), digest.digest(), new, until)

    def _room(self, prompt: str | list[dict], images: int, wanted: int) -> int:
        """As many new tokens as are wanted, or fewer: tasks allow up to 49,152, the context may have less room."""
        processor, limit = self.engine.processor, context_of(self.engine.model.config.text_config)
        taken = len(encode_prompt(prompt, processor.tokenizer)) + max(1, images) * processor.num_image_tokens
        if not limit or taken + wanted <= limit:
            return wanted
        room = limit - taken
        return max(1, room - room % ROOM_STEP if room > ROOM_STEP else room)

    def _by_engine(self, asked: list[Asked]) -> Iterator[tuple[Any, list[Asked]]]:
        """Requests about one picture share its prefix; the others, if there are any, go through the processor."""
        one, others = [a for a in asked if a.images == 1], [a for a in asked if a.images != 1]
        if one:
            yield self.engine, one
        if others:
            model, processor = self.engine.model, self.engine.processor
            rows = 1 if padding_problem(model, processor) else self.engine.batch_size
            yield PlainEngine(model, processor, rows), others


def _check_greedy(options: dict, task: str) -> None:
    """Raises ValueError for a way of decoding that is not ours; says once what is ignored."""
    sampled = options.get("do_sample", float(options.get("temperature") or 0) > 0)
    if sampled or int(options.get("num_beams") or 1) != 1 or float(options.get("repetition_penalty") or 1) != 1:
        raise ValueError(
            f"task {task} asks for sampling, beams or a repetition penalty ({options}), but answers are decoded "
            "greedily: --gen_kwargs do_sample=False,num_beams=1,repetition_penalty=1 evaluates it that way"
        )
    if unknown := sorted(options.keys() - KNOWN - WITHOUT_EFFECT - _told):
        _told.update(unknown)
        logger.warning(f"task {task}: generation_kwargs that are ignored: {', '.join(unknown)}")


def _batches(asked: list[Asked], rows: int) -> Iterator[list[list[Asked]]]:
    """Requests by picture, as many pictures as `rows` requests have; those of like limits and lengths lie together."""
    groups: dict[bytes, list[Asked]] = defaultdict(list)
    for one in asked:
        groups[one.key].append(one)
    batch: list[list[Asked]] = []
    for group in sorted(groups.values(), key=lambda group: max((one.new, len(str(one.prompt))) for one in group)):
        if batch and sum(map(len, batch)) + len(group) > rows:
            yield batch
            batch = []
        batch.append(group)
    yield batch


def _check(answers: list[Answer]) -> None:
    """Says how many requests could not be answered; raises ValueError if none could."""
    errors = [answer.error for answer in answers if answer.error]
    if errors and len(errors) == len(answers):
        raise ValueError(f"none of the {len(answers)} requests could be answered: {errors[0]}")
    if errors:
        logger.warning(f"{len(errors)} of {len(answers)} requests have no answer, which counts as ''; one: {errors[0]}")


def _cut(text: str, until: tuple[str, ...]) -> str:
    """The text before the first of some others."""
    return min((text.partition(stop)[0] for stop in until), key=len, default=text)
