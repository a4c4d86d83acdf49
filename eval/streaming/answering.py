"""One answer while it is written: token ids become text that can be shown, until it ends."""

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image


@dataclass(frozen=True)
class Request:
    """A conversation that ends with a question, and how it is to be answered.

    Args:
        messages: `role` and `content` (text) of each turn; the last is the user's.
        images: What is asked about; all come before the text, as in training.
        max_new_tokens: Where an answer is cut off.
        temperature: 0 takes the likeliest token always.
        top_p: Draw from the likeliest tokens whose probabilities add up to this.
        stop: Texts at which an answer ends, which do not belong to it.
        seed: Of what is drawn; None draws otherwise every time.

    Raises:
        ValueError: a value makes no sense.
    """

    messages: Sequence[dict]
    images: Sequence[Image.Image] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: expected at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected more than 0, at most 1")
        if not all(self.stop):
            raise ValueError("an empty text cannot stop an answer: leave it out")


class Answering:
    """An answer that is being written; iterating over it gives its text in pieces.

    Attributes:
        text: What was written so far, without outer white space; the pieces together.
        finish_reason: `stop`, `length`, `cancelled` or `error`; None as long as it is written.
        error: What went wrong.
        prompt_tokens: Of the conversation and its images.
    """

    def __init__(self, request: Request, start: list[int], ids: list[int], tokenizer, notify: Callable | None):
        """Takes token ids before and after the images, and who is to get the pieces instead of this."""
        self.request, self.start, self.ids, self.tokenizer = request, start, ids, tokenizer
        self.text, self.finish_reason, self.error, self.cancelled = "", None, None, False
        self.prompt_tokens, self.room, self.tokens = 0, request.max_new_tokens, []
        # Set by the engine: which batch it can join, which images it is about, and their pixels [M, 3 * parts, H, W].
        self.kind, self.key, self.pixels = (), (), None
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._notify = notify or self._pieces.put
        self._raw, self._seen, self._shown, self._cut = "", 0, 0, False
        self.generator = torch.Generator()
        if request.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(request.seed % 2**63)

    @property
    def completion_tokens(self) -> int:
        """Tokens written so far, the one that ends the answer included."""
        return len(self.tokens)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        if self.error:
            raise RuntimeError(self.error)

    def cancel(self) -> None:
        """Ends the answer at its next token."""
        self.cancelled = True

    def check_cancelled(self) -> bool:
        """Ends the answer if it was cancelled; whether it has ended."""
        if self.cancelled and not self.finish_reason:
            self.finish("cancelled")
        return self.finish_reason is not None

    def take(self, token: int, *, ended: bool) -> bool:
        """Adds a token, of which `ended` says whether it ends answers; returns whether the answer has ended."""
        if self.check_cancelled():
            return True
        self.tokens.append(token)
        self._decode()
        if ended or self._stopped():
            self.finish("stop")
        elif self.completion_tokens >= self.room:
            self.finish("length")
        else:
            self._show(self._raw[: len(self._raw) - self._held_back()])
        return self.finish_reason is not None

    def finish(self, reason: str, error: str | None = None) -> None:
        """Ends the answer: what was held back is shown."""
        if not self._stopped():
            self._decode(whole=False)
            self._stopped()
        self._show(self._raw)
        self.finish_reason, self.error = reason, error
        self._tell(None)

    def _stopped(self) -> bool:
        """Cuts the text off at the first stop, if there is one."""
        stops = [at for stop in self.request.stop if (at := self._raw.find(stop)) >= 0]
        self._cut = self._cut or bool(stops)
        self._raw = self._raw[: min(stops, default=None)]
        return self._cut

    def _decode(self, whole: bool = True) -> None:
        """Adds what the last tokens say, once they are whole characters, or at the end whatever they are."""
        decode = self.tokenizer.decode
        before = decode(self.tokens[self._shown : self._seen], skip_special_tokens=True)
        now = decode(self.tokens[self._shown :], skip_special_tokens=True)
        if len(now) > len(before) and not (whole and now.endswith("\ufffd")):
            self._raw += now[len(before) :]
            self._shown, self._seen = self._seen, len(self.tokens)

    def _held_back(self) -> int:
        """Characters at the end that may belong to a stop."""
        longest = max(map(len, self.request.stop), default=1) - 1
        for length in range(min(longest, len(self._raw)), 0, -1):
            if any(stop.startswith(self._raw[-length:]) for stop in self.request.stop):
                return length
        return 0

    def _show(self, text: str) -> None:
        """Gives out what is new in a text, but white space at its end, which nothing may follow."""
        text = text.strip()
        if len(text) > len(self.text):
            new, self.text = text[len(self.text) :], text
            self._tell(new)

    def _tell(self, piece: str | None) -> None:
        try:
            self._notify(piece)
        except Exception:  # whoever asked is gone
            self.cancel()
