"""The server of transformers answers OpenAI's client about an image as the model does."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from golden_cases import ROOT
from PIL import Image

import prismatic
from prismatic.miniature.scenes import scene
from recipes.serve import main, whole_model

PLACE = ROOT / ".venv" / "serving"
there = all(find_spec(name) or (PLACE / name).is_dir() for name in ("openai", "fastapi", "uvicorn"))


def data_url(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{PLACE}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "recipes", "serve", "miniature", "--port", port, "--device", "cpu"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=file, stderr=file)
    for _ in range(600):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", int(port))) == 0:
                break
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(not there, reason="the server's packages are not installed")
def test_questions_about_an_image(server, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(PLACE)])
    from openai import OpenAI

    model, processor = prismatic.load("miniature")
    client = OpenAI(base_url=server, api_key="none", timeout=60)
    for number, question in ((0, "What color is the cross?"), (1, "How many objects are there?")):
        picture = Image.fromarray(scene(3, number).image)
        image = {"type": "image_url", "image_url": {"url": data_url(picture)}}
        messages = [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
        inputs = processor.ask([question], [picture])
        ids = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        asked = {"model": whole_model("miniature"), "messages": messages, "max_tokens": 10, "temperature": 0}
        assert client.chat.completions.create(**asked).choices[0].message.content.strip() == expected
        pieces = [part.choices[0].delta.content for part in client.chat.completions.create(**asked, stream=True)]
        assert "".join(piece or "" for piece in pieces).strip() == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["no/such/model"], "no model called 'no/such/model'"), (["--port", "1"], "no model called '--port'")],
)
def test_mistakes_are_one_line(arguments, said, monkeypatch):
    monkeypatch.setattr("transformers.cli.serve.is_serve_available", lambda: True)
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        main(arguments)


def test_adapters_are_written_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no whole model: prismatic export .* writes one"):
        whole_model(str(tmp_path))
