"""Questions that are asked at the same time against one after the other, through `prismatic serve`.

64 questions about 8 images, 8 about each, answers of up to 24 tokens: by 64 clients at once, and by one that waits for
every answer, of the same server in a process of its own. The models are the bundled one and that of
benchmarks/evaluate.py; the answers must be equal. Does nothing where the server's packages are not installed.
"""

import base64
import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from evaluate import make, pictures_of

import prismatic
from vision_backbones.table import table

IMAGES, EACH, NEW, ROUNDS = 8, 8, 24, 3


@contextmanager
def server(folder: Path):
    """The port of a server in a process of its own."""
    command = [sys.executable, "-m", "prismatic", "serve", str(folder), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        try:
            line = next(line for line in run.stdout if line.startswith("serving "))
            yield int(line.rpartition(":")[2].partition("/")[0])
        finally:
            run.terminate()


def bodies_of(folder: Path) -> list[bytes]:
    """The requests, as OpenAI's clients send them."""
    rng = np.random.default_rng(0)
    words = "left right above below the red small circle large square of nearest object in front blue corner".split()
    bodies = []
    for (picture,) in pictures_of(IMAGES, 1):
        file = io.BytesIO()
        picture.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        for _ in range(EACH):
            text = {"type": "text", "text": " ".join(rng.choice(words, rng.integers(8, 25)))}
            content = [{"type": "image_url", "image_url": {"url": url}}, text]
            asked = {"model": str(folder), "messages": [{"role": "user", "content": content}], "max_tokens": NEW}
            bodies.append(json.dumps(asked).encode())
    return bodies


def ask(port: int, body: bytes) -> tuple[str, float]:
    """An answer, and the seconds that it took."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", body)
    answer = json.load(connection.getresponse())
    connection.close()
    return answer["choices"][0]["message"]["content"], time.perf_counter() - started


def asked_by(clients: int, port: int, bodies: list[bytes]) -> tuple[list[str], list[float], float]:
    """Answers, the seconds of each, and those of all together."""
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        found = list(pool.map(lambda body: ask(port, body), bodies))
        return [text for text, _ in found], [seconds for _, seconds in found], time.perf_counter() - started


def measure(name: str, folder: Path) -> tuple:
    """The row of a model."""
    bodies, ratios, alone, together = bodies_of(folder), [], [], []
    with server(folder) as port:
        asked_by(4, port, bodies[:4])
        for _ in range(ROUNDS):  # in turns, so that a busy machine slows both
            expected, each, seconds = asked_by(1, port, bodies)
            given, each_together, seconds_together = asked_by(len(bodies), port, bodies)
            assert given == expected, "answers differ"
            ratios.append(seconds / seconds_together)
            alone.append((seconds, max(each))), together.append((seconds_together, max(each_together)))
    best, best_together = min(alone), min(together)
    numbers = (len(bodies) / best[0], len(bodies) / best_together[0], float(np.median(ratios)), 3.0)
    return (name, *numbers, best[1], best_together[1], len(set(given)))


def main() -> None:
    """Prints the table."""
    if not (find_spec("fastapi") and find_spec("uvicorn")):
        print("the server's packages are not installed: pip install 'prismatic-locality[app]'")
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name, parts in (("bundled", prismatic.load("miniature")), ("of evaluate.py", make())):
            folder = Path(place) / name.replace(" ", "-")
            for part in parts:
                part.save_pretrained(folder)
            rows.append(measure(name, folder))
    header = (
        "model",
        "answers/s alone",
        "together",
        "faster",
        "target",
        "slowest s alone",
        "together",
        "different outputs",
    )
    print(table(rows, header))


if __name__ == "__main__":
    main()
