"""What is said in the windows of browsers, with one model or with two side by side."""

import queue
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from eval.streaming import Answering, QueueFull, Request, StreamingEngine

LONGEST = 4_000  # characters of a question
KEPT = 1_000  # windows whose conversations are remembered


class Talk:
    """The conversation of one window; with several models, each has a history of its own.

    Attributes:
        histories: Turns (`role`, `content`) with each model, the answers as far as they are written.
    """

    def __init__(self, engines: Sequence[StreamingEngine]):
        """Takes who answers."""
        self.engines = list(engines)
        self.histories: list[list[dict]] = [[] for _ in engines]
        self._turn, self._answers = 0, []

    def stop(self) -> None:
        """Ends what is being written; what was written stays."""
        for answer in self._answers:
            answer.cancel()

    def anew(self) -> None:
        """Forgets everything, an answer that is being written included."""
        self.stop()
        self._turn += 1
        self._answers, self.histories = [], [[] for _ in self.engines]

    def again(self) -> str:
        """The last question, which is taken back with its answers.

        Raises:
            ValueError: There is none, or an answer is being written.
        """
        self._check_idle()
        asked = [place for place, turn in enumerate(self.histories[0]) if turn["role"] == "user"]
        if not asked:
            raise ValueError("there is no question yet")
        text = self.histories[0][asked[-1]]["content"]
        self.histories = [history[: asked[-1]] for history in self.histories]
        return text

    def ask(self, text: str, images: Sequence, system: str, **options: Any) -> Iterator[None]:
        """Asks all models; yields whenever `histories` have changed, until all have answered or it is begun anew.

        Args:
            text: The question.
            images: What it is about.
            system: System message; "" for none.
            options: Of `Request`.

        Raises:
            ValueError: An answer is being written, the question is empty or too long, or a model refuses or fails.
        """
        self._check_idle()
        if not (text := text.strip()):
            raise ValueError("type a question first")
        if len(text) > LONGEST:
            raise ValueError(f"the question has {len(text):,} characters: at most {LONGEST:,}")
        first = [{"role": "system", "content": system.strip()}] if system.strip() else []
        asked = [[*_answered(history), {"role": "user", "content": text}] for history in self.histories]
        requests = [Request([*first, *history], images, **options) for history in asked]
        news: queue.SimpleQueue = queue.SimpleQueue()
        self._turn += 1
        turn, answers = self._turn, self._answers
        try:
            for engine, request in zip(self.engines, requests, strict=True):
                answers.append(engine.submit(request, news.put))
            self.histories, going = asked, len(answers)
            yield
            while going and self._turn == turn:
                going -= news.get() is None
                while not news.empty():
                    going -= news.get() is None
                if self._turn == turn:
                    self.histories = [_with(history, answer) for history, answer in zip(asked, answers, strict=True)]
                    yield
            if problems := [answer.error for answer in answers if answer.error]:
                raise ValueError(problems[0])
        except QueueFull as error:
            raise ValueError(f"{error}: try again in a moment") from None
        finally:
            for answer in answers:  # whoever asked may be gone
                answer.cancel()
            if self._turn == turn:
                self._answers = []

    def _check_idle(self) -> None:
        if self._answers:
            raise ValueError("an answer is being written: wait for it, or stop it")


def _answered(history: list[dict]) -> list[dict]:
    """A history without a last question that was never answered."""
    return history[:-1] if history and history[-1]["role"] == "user" else history


def _with(history: list[dict], answer: Answering) -> list[dict]:
    return [*history, {"role": "assistant", "content": answer.text}] if answer.text else history


class Talks:
    """The conversations of all windows, by gradio's name of each; the oldest are forgotten."""

    def __init__(self, engines: Sequence[StreamingEngine]):
        """Takes who answers."""
        self.engines, self.known = engines, OrderedDict()

    def of(self, window: str | None) -> Talk:
        """The conversation of a window."""
        talk = self.known.setdefault(window, Talk(self.engines))
        self.known.move_to_end(window)
        while len(self.known) > KEPT:
            self.known.popitem(last=False)[1].anew()
        return talk
