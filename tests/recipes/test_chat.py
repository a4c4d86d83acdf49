"""`prismatic chat`: a conversation in the terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import forked
import pytest
import torch
from golden_cases import ROOT
from PIL import Image
from talking import QUESTIONS, generated

import prismatic
from eval.streaming import Request
from eval.streaming.start import device_of
from prismatic.miniature.scenes import scene
from prismatic.text.visible import visible
from recipes.chat import main
from recipes.chatting.pictures import example_file, open_picture
from recipes.chatting.terminal import Conversation, converse
from recipes.config.chat import parse_chat


class Screen:
    """Lines to be typed, and what appears; an exception among the lines is raised."""

    def __init__(self, *lines):
        self.lines, self.text = list(lines), ""

    def read(self, prompt):
        self.text += prompt
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def talk(conversation, *lines):
    screen = Screen(*lines)
    converse(conversation, screen.read, screen)
    return screen.text


def start(engine, *images, **options):
    return Conversation(engine, [str(image) for image in images], Request([], max_new_tokens=30, **options))


def test_answers_are_those_of_generate(engine, picture):
    text = talk(start(engine, picture), *[part for q in QUESTIONS for part in (q, "/reset")])
    shown = [line.split("model> ")[1] for line in text.splitlines() if "model> " in line]
    assert shown == [generated(engine, question, picture) for question in QUESTIONS]


def test_turns_are_remembered_and_forgotten(engine, picture):
    conversation = start(engine, picture)
    talk(conversation, QUESTIONS[0], QUESTIONS[1])
    assert [turn["content"] for turn in conversation.turns][::2] == QUESTIONS[:2]
    second = conversation.ask(QUESTIONS[2])
    list(second)
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in conversation.turns]
    told = engine.submit(
        Request([*turns, {"role": "user", "content": QUESTIONS[2]}], [Image.open(picture)], max_new_tokens=30)
    )
    assert second.prompt_tokens == told.prompt_tokens and "".join(told) == second.text
    conversation.command("/reset")
    assert conversation.ask(QUESTIONS[2]).prompt_tokens < second.prompt_tokens


def test_another_picture_begins_anew(engine, picture, tmp_path):
    other = tmp_path / "other.png"
    Image.fromarray(scene(3, 7, min_objects=2).image).save(other)
    conversation = start(engine, picture)
    text = talk(conversation, QUESTIONS[0], "/image", f"/image {other}", QUESTIONS[0], f"/image '{picture}' {other}")
    assert f"looking at {picture}\n" in text and f"looking at {other}\n" in text
    assert f"model> {generated(engine, QUESTIONS[0], other)}\n" in text
    assert len(conversation.images) == 2 and not conversation.turns


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image nothing.png", "error: no picture nothing.png"),
        ("/image {folder}/broken.png", "broken.png: no image of a known format"),
        ("/image 'a", "error: No closing quotation"),
        ("/imag x", "unknown command /imag: did you mean /image?"),
        ("/save", "error: nothing was said|error: expected one file: /save FILE"),
        ("/save {folder}/x.jsonl", "error: nothing was said yet"),
        ("/system Be brief.", "error: this model's chat template has no place for a system message"),
        ("word " * 3000, "this model's context has 1024: shorten it"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(engine, picture, line, said, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and so on")
    conversation = start(engine, picture)
    text = talk(conversation, line.format(folder=tmp_path))
    assert any(part in text for part in said.split("|")) and text.count("\n") == 2
    assert conversation.files == [str(picture)]


def test_a_conversation_is_saved_as_training_data(engine, picture, tmp_path):
    conversation = start(engine, picture)
    talk(conversation, QUESTIONS[0], QUESTIONS[1], f"/save {tmp_path}/rows.jsonl", f"/save {tmp_path}/rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0]["image"] == picture.name
    assert [turn["from"] for turn in rows[0]["conversations"]] == ["human", "gpt"] * 2
    assert rows[0]["conversations"][0]["value"] == f"<image>\n{QUESTIONS[0]}"
    elsewhere = tmp_path / "saved" / "rows.jsonl"
    elsewhere.parent.mkdir()
    conversation.save(elsewhere)  # the picture is copied
    for file in (tmp_path / "rows.jsonl", elsewhere):
        done = forked.run(["-m", "prismatic.data.verify", str(file), str(file.parent)])
        assert done.returncode == 0 and "images decoded" in done.stdout, done.stdout
    (copied,) = (elsewhere.parent / "rows-images").iterdir()
    assert copied.read_bytes() == picture.read_bytes()


def test_a_system_message_reaches_models_that_take_one(engine, picture):
    template, tokenizer = engine.processor.tokenizer.chat_template, engine.processor.tokenizer
    tokenizer.chat_template = prismatic.text.prompts.chat_template("vicuna-v1.5")
    try:
        conversation = start(engine, picture)
        before = conversation.ask("Hi").prompt_tokens
        talk(conversation, "/system " + "Answer in one word. " * 20)
        assert conversation.ask("Hi").prompt_tokens > before
    finally:
        tokenizer.chat_template = template


def test_ctrl_c_stops_an_answer_and_not_the_program(engine, picture, monkeypatch):
    """An answer that would be long: the model never ends it."""
    monkeypatch.setattr(engine.engine, "eos", torch.tensor([-1]))
    conversation = Conversation(engine, [str(picture)], Request([], max_new_tokens=900))
    screen = Screen(QUESTIONS[0], KeyboardInterrupt(), "/reset", "/quit", "never read")
    written = screen.write

    def interrupted(text):
        written(text)
        if screen.text.count(" ") > 14 and "[stopped]" not in screen.text and not conversation.turns:
            monkeypatch.setattr(screen, "write", written)
            raise KeyboardInterrupt

    screen.write = interrupted
    converse(conversation, screen.read, screen)
    assert " [stopped]\n" in screen.text and "(Ctrl-C stops an answer" in screen.text
    assert "a new conversation" in screen.text and screen.lines == ["never read"]
    deadline = time.monotonic() + 20
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.running


def test_what_steers_a_terminal_is_not_printed(engine, picture, monkeypatch):
    class Hostile:
        text, finish_reason = "red\x1b]0;pwned\x07\x1b[2J\u202egreen", "stop"

        def __iter__(self):
            return iter([self.text])

    monkeypatch.setattr(Conversation, "ask", lambda self, text: Hostile())
    text = talk(start(engine, picture), "What?")
    assert visible("a\u00a0\u202f\u3000\u200d b\n") == "a\u00a0\u202f\u3000\u200d b\n"
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "red" in text and "green" in text


def test_photographs_are_upright(tmp_path):
    noise, exif = Image.effect_noise((30, 20), 50).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "turned.png", exif=exif)
    assert open_picture(tmp_path / "turned.png").tobytes() == noise.transpose(Image.Transpose.ROTATE_270).tobytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--temperature", "-1"], "--temperature is -1: expected 0 or more"),
        (["--top_p", "0"], "--top_p is 0.0"),
        (["--out", "x"], "--out is for answers to --questions"),
        (["--questions", "x", "--image", "y"], "drop --image"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--seed", "-3"], "--seed is -3"),
    ],
)
def test_settings_that_make_no_sense(argv, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_chat(argv)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="device 'tpu9' is not here"):
        device_of("tpu9")
    with pytest.raises(ValueError, match="no questions|cannot be read"):
        main(parse_chat(["miniature", "--questions", str(tmp_path / "none.jsonl")]))


@pytest.mark.slow
def test_as_a_user_types(tmp_path):
    """In a terminal of its own: the drawn scene, an answer, Ctrl-C at the prompt, Ctrl-D."""
    controller, terminal = pty.openpty()
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TERM": "xterm"}
    command = [sys.executable, "-m", "recipes", "chat"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    text = ""

    def until(wanted, again=lambda: None):
        nonlocal text
        deadline = time.monotonic() + 60
        while wanted not in text:
            assert time.monotonic() < deadline, text
            if select.select([controller], [], [], 0.5)[0]:
                text += os.read(controller, 4096).decode(errors="replace")
            else:
                again()
        text = text.split(wanted, 1)[1]

    until(str(tmp_path / "prismatic" / "miniature"))
    until("you> ")
    os.write(controller, b"What color is the circle?\n")
    until("model> ")
    until("you> ")
    # Before readline waits, a signal is only seen with the next key: people press again.
    until("Ctrl-C stops an answer", again=lambda: os.kill(process.pid, signal.SIGINT))
    until("you> ")
    os.write(controller, b"\x04")
    assert process.wait(30) == 0
    assert example_file(0).is_file()
