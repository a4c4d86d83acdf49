"""Models behind a server with OpenAI's interface: asked about pictures as ours are."""

import base64
import hashlib
import io
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from eval import records
from eval.endpoint_client import LOGPROBS, Client, NoAnswer, Refused
from eval.engine import Answer, Question, chosen
from eval.runner import Job
from eval.task import Choose
from vision_backbones.files import replacing

AHEAD = 4  # times as many questions in a batch as are asked at once, so that few wait for the slowest
TOP = 20  # likeliest first tokens that are asked for, the most that the interface allows
CHOICE_TOKENS = 64  # for an option in words
ENOUGH = 8  # questions without an answer, one after another, with which an evaluation stops
THOUGHT = re.compile(r"\A(?:.*</think>|\s*<think>.*)", re.DOTALL)  # before an answer, or without one
UNANSWERED = "no answer from the server"  # begins the error of a question that is asked again when a run goes on


class EndpointEngine:
    """Answers with a model behind a server; greedily, and for options by their probabilities where it gives them.

    Args:
        url: Base URL, such as `http://127.0.0.1:8000/v1`.
        name: Of the model there.
        concurrency: Questions that are asked at the same time.
        per_minute: Requests that may be sent in a minute; None for no limit.
        max_tokens: Of every answer, what is thought before it included; None for the limits of the tasks.
        say: Takes a line on what the server does not do.

    Raises:
        ValueError: It is no such URL.
    """

    def __init__(
        self,
        url: str,
        name: str,
        concurrency: int = 8,
        per_minute: float | None = None,
        max_tokens: int | None = None,
        say=print,
    ):
        self.client, self.name, self.max_tokens, self.say = Client(url, per_minute), name, max_tokens, say
        self.batch_size = concurrency * AHEAD
        self.fingerprint = hashlib.sha256(json.dumps([url.rstrip("/"), name]).encode()).hexdigest()[:16]
        self.pool = ThreadPoolExecutor(concurrency, "asking")
        self.without: set[str] = set()  # parameters that the server does not know
        self.failed, self.down, self.lock = 0, "", threading.Lock()
        self.shown: Sequence[list[str]] = ()

    def prepare(self, image: Image.Image | list[Image.Image]) -> list[str]:
        """A picture, or pictures, as data URLs: PNG, so that the server sees every pixel as it is."""
        return [_data_url(one) for one in (image if isinstance(image, list) else [image])]

    def option_ids(self, options: Sequence[str]) -> None:
        """Nothing: what cannot be scored is generated and parsed."""

    def answer(self, pictures: Sequence[list[str]], questions: Sequence[Question]) -> list[Answer]:
        """Answers to `questions` about `pictures` (from `prepare`), in their order.

        Raises:
            ConnectionError: So many questions before had no answer that asking more makes no sense.
        """
        if not any(picture is before for picture in pictures for before in self.shown):
            self.check()  # but not amid the questions about a picture, whose answers are stored together
        self.shown = pictures
        try:
            return list(self.pool.map(lambda question: self._ask(pictures[question.image], question), questions))
        except BaseException:
            self.client.pace.ended.set()
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def check(self) -> None:
        """Raises ConnectionError where the server has stopped answering."""
        if self.down:
            raise ConnectionError(
                f"{self.client.address} has left {ENOUGH} questions in a row without an answer ({self.down}): all "
                "answers so far are stored, and the same command continues once it answers again"
            )

    def _ask(self, urls: list[str], question: Question) -> Answer:
        if self.down:
            return Answer(error=f"{UNANSWERED}: it was not asked, others before had none")
        try:
            answer = self._answered(urls, question)
        except Refused as refusal:
            answer = Answer(error=f"the server refuses the question: {refusal}")
        except NoAnswer as problem:
            with self.lock:
                self.failed += 1
                if self.failed >= ENOUGH:
                    self.down = str(problem)
            return Answer(error=f"{UNANSWERED}: {problem}")
        self.failed = 0
        return answer

    def _answered(self, urls: list[str], question: Question) -> Answer:
        kind = question.kind
        content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content.append({"type": "text", "text": question.prompt})
        messages = [{"role": "user", "content": content}]
        if not isinstance(kind, Choose):
            return _text(self._complete({"messages": messages, "max_tokens": self.max_tokens or kind.max_new_tokens}))
        limit = self.max_tokens or CHOICE_TOKENS
        wanted = {"messages": messages, "max_tokens": limit, LOGPROBS: True, "top_logprobs": TOP}
        choice = self._complete(wanted)
        found = option_probabilities(choice.get(LOGPROBS), kind.options)
        return chosen(kind, found) if found else _text(choice)

    def _complete(self, asked: dict[str, Any]) -> dict:
        while True:
            body = {"model": self.name, "temperature": 0} | asked
            body = {key: value for key, value in body.items() if key not in self.without}
            if "max_tokens" in self.without:
                body["max_completion_tokens"] = asked["max_tokens"]
            try:
                return self.client.complete(body)
            except Refused as refusal:
                if not self._does_without(refusal, body):
                    raise

    def _does_without(self, refusal: Refused, body: dict) -> bool:
        """Whether a request was refused for a parameter that can be left out, as it then is."""
        with self.lock:
            said = str(refusal)
            name = refusal.param or next((n for n in ("temperature", "max_tokens") if f"'{n}'" in said), "")
            if LOGPROBS in body and LOGPROBS in f"{name} {said}".lower():
                name, parameters = LOGPROBS, {LOGPROBS, "top_logprobs"}
                told = "options are read from the text of the answer"
            elif name in body and (refusal.code.startswith("unsupported") or "not support" in said):
                parameters = {name} & {"temperature", "max_tokens"}
                told = {"temperature": "answers are drawn, and may be others next time"}.get(name, "")
            else:
                return False
            if told and not parameters <= self.without:
                self.say(f"{self.name} at {self.client.address} takes no {name}: {told}")
            self.without |= parameters
            return bool(parameters & body.keys())


def option_probabilities(logprobs: Any, options: Sequence[str]) -> list[float] | None:
    """Probabilities of options among each other, as first token of an answer; None where one of them is not there.

    Args:
        logprobs: What OpenAI's interface gives of an answer.
        options: Texts; white space around tokens does not count.
    """
    try:
        found = dict.fromkeys(options, 0.0)
        for token in logprobs["content"][0]["top_logprobs"]:
            if (text := token["token"].strip()) in found:
                found[text] += math.exp(token["logprob"])
        total = math.fsum(found.values())
        return [p / total for p in found.values()] if all(found.values()) and math.isfinite(total) else None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):  # strangers' JSON
        return None


@contextmanager
def asking_again(folder: Path, entry: dict | None, fingerprint: str) -> Iterator[None]:
    """Inside, a task's questions that had no answer from the server count as not asked.

    If what is done inside fails, samples that were complete are as before; answers that it stored stay.

    Args:
        folder: Of the task, in that of the evaluation.
        entry: What `results.json` says of it.
        fingerprint: Of the answers that are wanted.

    Raises:
        ValueError: The samples were changed by hand.
    """
    records.check_unchanged(folder, entry, fingerprint)
    samples, before, kept = (folder / name for name in (records.SAMPLES, "samples.before", "kept.partial.jsonl"))
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_bytes().splitlines(keepends=True)
        answered = [line for line in lines if not _unanswered(line)]
        if len(answered) < len(lines):
            with replacing(kept if file == samples else file) as path:
                path.write_bytes(b"".join(answered))
            if file == samples:
                samples.replace(before)
    try:
        yield
    except BaseException:
        if before.exists() and not samples.exists():
            before.replace(samples)
            kept.unlink(missing_ok=True)
        raise
    before.unlink(missing_ok=True)


def how_answered(samples: Path) -> dict[str, Any]:
    """What is particular to served models, of a task.

    Returns:
        `choices`: how many were made by probabilities, and how many read from the text of the answer; `truncated`: how
        many answers were cut off at the limit of tokens, those without text included.
    """
    choices, truncated = Counter({"by_probabilities": 0, "by_text": 0}), 0
    for line in samples.read_bytes().splitlines():
        record = json.loads(line)
        if "options" in record and "error" not in record:
            choices["by_probabilities" if record["probabilities"] else "by_text"] += 1
        truncated += record.get("finish_reason") == "length"
    return {"choices": dict(choices), "truncated": truncated}


def check_readable(job: Job) -> None:
    """Raises ValueError where a text could not be held to the options: they are words that the prompt does not show."""
    for example in job.examples:
        kind, prompt = job.task.answer(example), job.task.prompt(example)
        words = isinstance(kind, Choose) and example.answer not in kind.options  # its answers are letters
        if words and not all(option in prompt for option in kind.options):
            asked = " or ".join(f"{job.key}+{name}" for name in ("llava", "text") if name in job.task.variants)
            raise ValueError(
                f"{job.key} compares probabilities of options that are not shown, which no server gives: evaluate "
                f"{asked or 'another task'}"
            )


def _unanswered(line: bytes) -> bool:
    try:
        return json.loads(line)["error"].startswith(UNANSWERED)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def _text(choice: dict) -> Answer:
    """What is said after what was thought; a thought that is cut off says nothing."""
    text, reason = choice["message"]["content"], choice.get("finish_reason")
    reason = reason if isinstance(reason, str) else None
    said = THOUGHT.sub("", text or "").strip()
    if text is None or (not said and reason == "length"):
        more = ": a higher --max_tokens leaves room for it" if reason == "length" else ""
        return Answer(error=f"the server's answer has no text (it ended by {reason!r}){more}", finish_reason=reason)
    return Answer(said, finish_reason=reason)


def _data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
