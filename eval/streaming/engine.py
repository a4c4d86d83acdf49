"""Answers that are read while they are written: several turns, sampling, many askers at once.

Requests join the batch that is being written as soon as a row is free, and leave it when they end or are cancelled.
Images are read once for all requests about them (see `eval.engine`), and the last ones are kept for the next turn.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from eval.engine import COMPACT_AT, Prefix, SharedPrefixEngine
from eval.rows import Rows
from eval.sharing import sharing_problem
from eval.streaming.answering import Answering, Request
from eval.streaming.kept_prefixes import KeptPrefixes, digest
from prismatic.models.attention import SHARED_PREFIX, SharedPrefix
from prismatic.models.self_check import attention, context_of
from prismatic.text.conversations import encode_prompt
from prismatic.text.rendering import render_prompt

GATHER = 0.01  # seconds an idle engine waits for more, so that what is asked at once starts in one batch
ROOM = 64  # tokens that a batch grows by


class QueueFull(RuntimeError):
    """Too many requests are waiting."""


class StreamingEngine:
    """Answers requests in a thread of its own; with temperature 0 as `generate` does for one question at a time.

    Args:
        model: A `PrismaticForConditionalGeneration`, on its device.
        processor: Its processor.
        batch_size: Requests that are answered at once; the others wait.
        waiting: How many may wait.

    Attributes:
        alone: Why requests share no computation with this LLM and are answered one after the other; None if they do.
    """

    def __init__(self, model, processor, batch_size: int = 32, waiting: int = 256):
        self.model, self.processor, self.batch_size, self.most_waiting = model.eval(), processor, batch_size, waiting
        self.alone = sharing_problem(model, processor)
        self.engine = SharedPrefixEngine(model, processor, batch_size)
        self._images = KeptPrefixes(self._read_images)
        self._batches: dict[tuple, _Batch] = {}
        self._queue: deque[Answering] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._now: Answering | None = None  # what is answered alone
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(batch.alive for batch in list(self._batches.values())) + (self._now is not None)

    @property
    def waiting_now(self) -> int:
        """Requests that wait for a free row."""
        return len(self._queue)

    @property
    def _free(self) -> int:
        return max(0, (1 if self.alone else self.batch_size) - self.running)

    def submit(self, request: Request, notify=None) -> Answering:
        """Takes a request and returns at once.

        Args:
            request: What is asked.
            notify: Gets every piece of the answer from the engine's thread, and None at its end; then iterating over
                the answer gives nothing.

        Raises:
            ValueError: The conversation is malformed, too long for the LLM's context, or has a system message that the
                model's template does not write.
            QueueFull: Too many are waiting.
            RuntimeError: The engine is closed.
        """
        check_system(request.messages, self.processor.tokenizer)
        ids = encode_prompt(list(request.messages), self.processor.tokenizer)
        start = self.engine.bos if request.images else ids[:1]
        pixels = [self.engine.transform(image) for image in request.images]
        asked = replace(request, images=())  # pixels are kept, whole pictures are not
        answer = Answering(asked, start, ids[len(start) :], self.processor.tokenizer, notify)
        answer.prompt_tokens = len(ids) + len(pixels) * self.processor.num_image_tokens
        context = context_of(self.model.config.text_config)
        answer.room = min(request.max_new_tokens, (context or 2**31) - answer.prompt_tokens)
        if answer.room < 1:
            raise ValueError(
                f"the conversation takes {answer.prompt_tokens} tokens with its images, this model's context has "
                f"{context}: shorten it"
            )
        answer.kind = (len(pixels), *start)
        answer.pixels = torch.stack(pixels) if pixels else torch.empty(0, 1, 1, 1)
        answer.key = (digest(request.images), *start)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if len(self._queue) >= self.most_waiting + self._free:
                raise QueueFull(f"{len(self._queue)} requests are waiting already, at most {self.most_waiting} may")
            self._queue.append(answer)
            self._changed.notify()
        return answer

    def close(self, finish: bool = True) -> None:
        """Takes no more requests and returns when those it has are answered, or, without `finish`, cancelled."""
        with self._changed:
            self._closed = True
            if not finish:
                for answer in [*self._queue, *(a for b in list(self._batches.values()) for a in b.answers), self._now]:
                    if answer:
                        answer.cancel()
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        with attention(self.model, SHARED_PREFIX):
            while (new := self._take()) is not None:
                if self.alone:
                    for answer in new:
                        self._guarded([answer], lambda answer=answer: self._answer_alone(answer))
                    continue
                for kind in dict.fromkeys(answer.kind for answer in new):
                    some = [answer for answer in new if answer.kind == kind]
                    self._guarded(some, lambda kind=kind, some=some: self._admit(kind, some))
                for kind, batch in list(self._batches.items()):
                    if not self._guarded(batch.answers, batch.step):
                        batch.answers = []
                    if not batch.alive:
                        del self._batches[kind]

    def _take(self) -> list[Answering] | None:
        """Requests for which there are rows, after a wait if there is nothing to do; None when all is done."""
        with self._changed:
            while not self._queue and not self._batches:
                if self._closed:
                    return None
                self._changed.wait()
            idle = not self._batches
        if idle and not self.alone:
            time.sleep(GATHER)
        with self._changed:
            gone = [answer for answer in self._queue if answer.cancelled]
            for answer in gone:
                self._queue.remove(answer)
            taken = [self._queue.popleft() for _ in range(min(self._free, len(self._queue)))]
        for answer in gone:
            answer.finish("cancelled")
        return taken

    def _guarded(self, answers: Sequence[Answering | None], work) -> bool:
        """Does some work; an error of it ends its answers, not the engine."""
        try:
            work()
        except Exception as error:  # of a stranger's architecture, or memory that ran out: anything
            for answer in answers:
                if answer and not answer.finish_reason:
                    answer.finish("error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return False
        return True

    def _read_images(self, answers: list[Answering]) -> Prefix:
        return self.engine.prefix([answer.pixels for answer in answers], answers[0].start)

    def _admit(self, kind: tuple, answers: list[Answering]) -> None:
        """Reads new conversations of one kind, and joins them to the batch of that kind."""
        keys = list(dict.fromkeys(answer.key for answer in answers))
        prefix = self._images.of([next(a for a in answers if a.key == key) for key in keys])
        answers = sorted(answers, key=lambda answer: len(answer.ids))
        images = [keys.index(answer.key) for answer in answers]
        rows = self.engine.read(prefix, images, [answer.ids for answer in answers], new=ROOM, keep=1)
        new = _Batch(self.engine, prefix, rows, rows.logits[:, -1], answers)
        if kind in self._batches:
            self._batches[kind].join(new)
        else:
            self._batches[kind] = new

    def _answer_alone(self, answer: Answering) -> None:
        """For LLMs that cannot share: `generate`, which knows every architecture."""
        self._now, request, device, stops = answer, answer.request, self.engine.device, self.engine.eos.tolist()
        try:
            images = [self.processor.image_token_id] * (answer.kind[0] * self.processor.num_image_tokens)
            ids = torch.tensor([answer.start + images + answer.ids], device=device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if answer.kind[0]:
                inputs["pixel_values"] = answer.pixels.to(device)
            sampling = {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(answer.generator.initial_seed())
                self.model.generate(
                    **inputs, max_new_tokens=answer.room, do_sample=request.temperature > 0, eos_token_id=stops,
                    streamer=_Into(answer, stops), stopping_criteria=StoppingCriteriaList([_Ended(answer)]),
                    **(sampling if request.temperature > 0 else {}),
                )  # fmt: skip
            if not answer.finish_reason:
                answer.finish("length")
        finally:
            self._now = None


class _Batch:
    """Rows that are written together, and the answers that they are; None where an answer has ended."""

    def __init__(self, engine: SharedPrefixEngine, prefix: Prefix, rows: Rows, logits: torch.Tensor, answers):
        self.engine, self.prefix, self.rows, self.logits = engine, prefix, rows, logits
        self.answers: list[Answering | None] = list(answers)
        self.stops = set(engine.eos.tolist())
        self._lay_out()

    @property
    def alive(self) -> int:
        return sum(answer is not None for answer in self.answers)

    def _lay_out(self) -> None:
        self.layout = SharedPrefix.of_rows(self.prefix, self.rows.images, self.rows.positions)

    def join(self, other: "_Batch") -> None:
        """Takes the rows of another batch."""
        used = sorted(set(self.rows.images))
        images = len(used)
        self.rows.images = [used.index(image) for image in self.rows.images]
        other.rows.images = [images + image for image in other.rows.images]
        pairs = zip(self.prefix, other.prefix, strict=True)
        self.prefix = [tuple(torch.cat([a[used], b]) for a, b in zip(*pair, strict=True)) for pair in pairs]
        self.rows.join(other.rows)
        self.logits, self.answers = torch.cat([self.logits, other.logits]), self.answers + other.answers
        self._lay_out()

    def step(self) -> None:
        """Writes one token of each answer."""
        tokens = self._chosen()
        for row, token in enumerate(tokens.tolist()):
            answer = self.answers[row]
            if answer and answer.take(token, ended=token in self.stops):
                self.answers[row] = None
        if not self.alive:
            return
        if self.alive <= COMPACT_AT * len(self.answers):
            kept = [row for row, answer in enumerate(self.answers) if answer]
            self.answers = [self.answers[row] for row in kept]
            kept = torch.tensor(kept, device=tokens.device)
            self.rows.keep(kept)
            tokens = tokens[kept]
            self._lay_out()
        if self.rows.length == self.rows.mask.shape[1]:
            self.rows.grow(ROOM)
        self.logits = self.engine.step(self.rows, tokens, self.layout)[:, -1]

    def _chosen(self) -> torch.Tensor:
        tokens = self.logits.argmax(-1)
        for row, answer in enumerate(self.answers):
            if answer and answer.request.temperature > 0:
                try:
                    tokens[row] = _drawn(self.logits[row], answer)
                except RuntimeError as error:  # of logits that are no numbers; others' rows go on
                    answer.finish("error", f"{type(error).__name__}: {error}")
        return tokens


def check_system(messages: Sequence[dict], tokenizer) -> None:
    """Raises ValueError for a system message that a model would not see: some chat templates leave it out."""
    first = messages[0] if messages else {}
    said = str(first.get("content", "")).strip() if first.get("role") == "system" else ""
    if said and said not in render_prompt(list(messages), tokenizer):
        raise ValueError(
            "this model's chat template has no place for a system message: leave it out, or choose another prompt style"
        )


def _drawn(logits: torch.Tensor, answer: Answering) -> int:
    """A token drawn from the most likely ones, whose probabilities add up to `top_p`."""
    logits = logits.cpu().double()  # not every accelerator has doubles
    logits = (logits - logits.max()) / answer.request.temperature  # the largest is 0, whatever the temperature
    shares, order = logits.softmax(-1).sort(descending=True)
    shares[shares.cumsum(0) - shares >= answer.request.top_p] = 0  # the first always stays
    return int(order[torch.multinomial(shares, 1, generator=answer.generator)])


class _Into(BaseStreamer):
    """Hands the tokens that `generate` writes to an answer."""

    def __init__(self, answer: Answering, stops: list[int]):
        self.answer, self.stops, self.prompt = answer, stops, True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then a token at a time."""
        if not self.prompt and not self.answer.finish_reason:
            token = int(value.flatten()[-1])
            self.answer.take(token, ended=token in self.stops)
        self.prompt = False

    def end(self) -> None:
        """Nothing is left."""


class _Ended(StoppingCriteria):
    """Ends `generate` where the answer has ended."""

    def __init__(self, answer: Answering):
        self.answer = answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        """`[1]`, whether it has."""
        self.answer.check_cancelled()
        return torch.tensor([self.answer.finish_reason is not None], device=input_ids.device)
