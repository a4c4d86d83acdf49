"""A conversation in the terminal: answers appear as they are written, and commands begin with a slash."""

import hashlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from eval.streaming import Answering, Request, StreamingEngine, check_system
from prismatic.text.visible import visible
from recipes.chatting.pictures import open_picture
from vision_backbones.names import suggest

COMMANDS = {
    "/image": "/image FILE ...    look at another picture, or at several; the conversation begins anew",
    "/reset": "/reset             begin anew, with the same picture",
    "/system": "/system [TEXT]     what the model is told before everything; the conversation begins anew",
    "/save": "/save FILE         write the conversation as one line of jsonl, as LLaVA's data are written",
    "/help": "/help              these lines",
    "/quit": "/quit              leave; so does Ctrl-D. Ctrl-C stops an answer",
}
PROMPT, ANSWER = "you> ", "model> "


class Conversation:
    """Turns, pictures and a system message, and what commands do to them.

    Args:
        engine: Answers.
        images: Files of pictures.
        request: Says how answers are written; its turns and pictures are not used.
        system: System message; "" for none.
    """

    def __init__(self, engine: StreamingEngine, images: list[str], request: Request, system: str = ""):
        self.engine, self.request = engine, request
        self.turns: list[dict] = []
        self.files, self.images, self.system = [], (), ""
        self.look_at(images)
        self.tell(system)

    def tell(self, system: str) -> None:
        """Begins anew with another system message, or without one.

        Raises:
            ValueError: The model's template does not write it; then nothing changes.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
        check_system(messages, self.engine.processor.tokenizer)
        self.system, self.turns = system, []

    def look_at(self, files: list[str]) -> None:
        """Begins anew with other pictures.

        Raises:
            ValueError: A file is no picture; then nothing changes.
        """
        images = tuple(open_picture(file) for file in files)
        self.files, self.images, self.turns = [str(Path(file).resolve()) for file in files], images, []

    def ask(self, text: str) -> Answering:
        """The answer to one more question, which is being written.

        Raises:
            ValueError: The conversation is too long.
        """
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": text}]
        return self.engine.submit(replace(self.request, messages=messages, images=self.images))

    def keep(self, text: str, answer: str) -> None:
        """Remembers a question and what was said to it."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def save(self, file: Path) -> None:
        """Appends the conversation to a file, as a row of LLaVA's data; pictures from elsewhere are copied beside it.

        Raises:
            ValueError: There is nothing to save.
            OSError: The file cannot be written.
        """
        if not self.turns:
            raise ValueError("nothing was said yet")
        names = {"user": "human", "assistant": "gpt"}
        turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in self.turns]
        turns[0]["value"] = "<image>\n" * len(self.files) + turns[0]["value"]
        row: dict = {"id": f"chat-{file.stem}"}
        if self.system:
            turns.insert(0, {"from": "system", "value": self.system})
        if self.files:
            names = [_below(Path(image), file) for image in self.files]
            row["image"] = names[0] if len(names) == 1 else names
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row | {"conversations": turns}, ensure_ascii=False) + "\n")

    def command(self, line: str) -> str | None:
        """Does what a line with a slash says; returns what is to be printed, None to leave.

        Raises:
            ValueError: There is no such command, or it cannot be done.
            OSError: Likewise.
        """
        name, _, rest = line.strip().partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name}: {suggest(name, COMMANDS)}")
        if name == "/quit":
            return None
        if name == "/help":
            return "\n".join(COMMANDS.values())
        if name == "/reset":
            self.turns = []
            return "a new conversation about the same picture" if self.files else "a new conversation"
        if name == "/system":
            self.tell(rest.strip())
            return "a new conversation, " + ("with that system message" if self.system else "without system message")
        files = shlex.split(rest)
        if name == "/save":
            if len(files) != 1:
                raise ValueError("expected one file: /save FILE")
            self.save(Path(files[0]).expanduser())
            return f"written to {Path(files[0]).expanduser().resolve()}"
        if files:
            self.look_at([str(Path(file).expanduser()) for file in files])
        return f"looking at {', '.join(self.files)}" if self.files else "no picture: /image FILE"


def converse(conversation: Conversation, read=input, out=sys.stdout) -> None:
    """Reads questions and commands until the end of the input, and prints answers as they are written.

    Args:
        conversation: What is talked about.
        read: Gives a line for a prompt; raises EOFError at the end.
        out: Where answers go.
    """

    def say(text: str, end: str = "\n") -> None:
        print(text, end=end, file=out, flush=True)

    while True:
        try:
            line = read(PROMPT).strip()
        except EOFError:
            return say("")
        except KeyboardInterrupt:
            say("\n(Ctrl-C stops an answer; /quit or Ctrl-D leaves)")
            continue
        if not line:
            continue
        try:
            if line.startswith("/"):
                if (said := conversation.command(line)) is None:
                    return None
                say(said)
            else:
                _answer(conversation, line, say)
        except (ValueError, OSError, RuntimeError) as error:
            say(f"error: {' '.join(str(error).split())}")
        except KeyboardInterrupt:
            say("")


def _answer(conversation: Conversation, line: str, say) -> None:
    answer = conversation.ask(line)
    say(ANSWER, end="")
    try:
        for piece in answer:
            say(visible(piece), end="")
    except KeyboardInterrupt:
        answer.cancel()
        for piece in answer:  # what was written until then
            say(visible(piece), end="")
        say(" [stopped]", end="")
    say(" [cut off: --max_new_tokens]" if answer.finish_reason == "length" else "")
    conversation.keep(line, answer.text)


def _below(image: Path, file: Path) -> str:
    """The path of a picture relative to the folder of a file; one that lies elsewhere is copied there first."""
    folder = file.resolve().parent
    if image.is_relative_to(folder):
        return image.relative_to(folder).as_posix()
    content = image.read_bytes()
    name = f"{file.stem}-images/{hashlib.sha256(content).hexdigest()[:8]}-{image.name}"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return name
