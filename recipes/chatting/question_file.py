"""A file of questions, and one of answers."""

import json
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from eval.streaming import Answering, QueueFull, Request, StreamingEngine
from recipes.chatting.pictures import open_picture

ADDED = ("answer", "finish_reason", "error")  # to a row; what an earlier run added is replaced


@dataclass(frozen=True)
class Question:
    """A row of a file, the conversation that it means, and its pictures."""

    row: dict
    messages: list[dict]
    images: list[Path]


def read_questions(file: Path) -> list[Question]:
    """The questions in a jsonl file.

    Raises:
        ValueError: A line is none, or names a picture that is not there.
    """
    questions = []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line), file.parent))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: {' '.join(str(error).split())[:200]}") from None
    if not questions:
        raise ValueError(f"{file} holds no questions: expected a line for each")
    return questions


def _question(row, folder: Path) -> Question:
    if not isinstance(row, dict):
        raise ValueError('expected an object such as {"image": "a.png", "question": "What is it?"}')
    if "messages" in row:
        messages = row["messages"]
        turns = messages if isinstance(messages, list) else [None]
        if not all(isinstance(t, dict) and isinstance(t.get("content"), str) for t in turns):
            raise ValueError("expected a list of objects with role and content (a text) under messages")
    elif isinstance(row.get("question"), str) and row["question"].strip():
        messages = [{"role": "user", "content": row["question"]}]
    else:
        raise ValueError(f"expected a text under question, or messages; found {', '.join(row) or 'nothing'}")
    images = row.get("images", row.get("image", []))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError("expected the name of a file under image, or a list of them under images")
    paths = [folder / image for image in images]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"no picture {missing[0]}")
    return Question(row, messages, paths)


def answers(engine: StreamingEngine, questions: list[Question], request: Request, system: str = "") -> Iterator[dict]:
    """The row of every question with `answer` and `finish_reason`, or `error`, in their order, as they come.

    Args:
        engine: Answers.
        questions: From `read_questions`.
        request: Says how answers are written.
        system: System message of those that have none.
    """
    asked: deque[tuple[Question, Answering | str]] = deque()
    left = deque(questions)
    while asked or left:
        while left and len(asked) < 2 * engine.batch_size:
            try:
                asked.append((left[0], _ask(engine, left[0], request, system)))
            except QueueFull:
                break
            except ValueError as error:
                asked.append((left[0], str(error)))
            left.popleft()
        question, answer = asked.popleft()
        yield {name: value for name, value in question.row.items() if name not in ADDED} | _result(answer)


def _ask(engine: StreamingEngine, question: Question, request: Request, system: str) -> Answering:
    messages = question.messages
    if system and messages and messages[0].get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    images = [open_picture(path) for path in question.images]
    return engine.submit(replace(request, messages=messages, images=images))


def _result(answer: Answering | str) -> dict:
    if isinstance(answer, str):
        return {"error": answer}
    try:
        return {"answer": "".join(answer), "finish_reason": answer.finish_reason}
    except RuntimeError as error:
        return {"error": str(error)}


def write_answers(
    engine: StreamingEngine, questions: list[Question], out: Path | None, request: Request, system: str
) -> int:
    """Writes the answers to a new file, a line each, or prints them; returns how many questions had errors.

    Raises:
        OSError: The file is there already, or cannot be written.
    """
    bar = tqdm(answers(engine, questions, request, system), total=len(questions), desc="answers", disable=not out)
    errors = 0
    with out.open("x", encoding="utf-8") if out else nullcontext() as target:
        for row in bar:
            errors += "error" in row
            print(json.dumps(row, ensure_ascii=False), file=target, flush=True)
    return errors
