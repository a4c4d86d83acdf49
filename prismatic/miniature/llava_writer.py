"""The miniature world on disk, in the genuine formats of the real data sets."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from prismatic.miniature.language import SHORT_KINDS, Question, answer_priors, describe, prompt, questions
from prismatic.miniature.scenes import sample_layout, scene

WORLD_VERSION = 5  # goes up when the same seed gives another world
TRAIN_SEED, HELD_OUT_SEED = 1, 2
HELD_OUT_SCENES = 400
TEXT_ONLY_SHARE = 20  # one row in so many is text only
ROWS_A_SCENE = 5


def llava_row(number: int | str, image: str | None, conversation: Iterable[tuple[str, str]]) -> dict:
    """One row of a LLaVA instruct file."""
    said = []
    for position, (question, answer) in enumerate(conversation):
        mark = "<image>\n" if image and position == 0 else ""
        said += [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    row = {"id": str(number), "conversations": said}
    return row | {"image": image} if image else row


def all_or_nothing(write: Callable) -> Callable[..., Path]:
    """Makes a writer of a folder give the folder: nothing if it is there already, else only when it is complete."""

    @wraps(write)
    def written(folder: Path, *arguments) -> Path:
        folder = Path(folder)
        if folder.exists():
            return folder
        tmp_path = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir(parents=True)
        write(tmp_path, *arguments)
        try:
            tmp_path.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(tmp_path)
        return folder

    return written


def training_questions(scenes: int = 1000) -> list[Question]:
    """All questions about training scenes, whatever part of them a training set asks."""
    import numpy as np

    drawn = [np.random.default_rng((TRAIN_SEED, 2, index)) for index in range(scenes)]
    return [question for rng in drawn for question in questions(sample_layout(rng), rng)]


@all_or_nothing
def write_llava(folder: Path, count: int) -> None:
    """Writes `train.json`, `held_out.json`, `priors.json` and the images they name; returns `folder`.

    Training rows are `count` single questions, five about a scene (one of them for a box, the others of other kinds),
    with the prompts of the five spatial benchmarks; one in twenty is about a scene in words, without an image. A row
    holds no second question: its answer may follow from that to the first, without looking. Held-out rows are questions
    with short answers, and for boxes, about scenes of another seed, `priors.json` the most frequent answer of each kind
    of question in training scenes; a held-out id is `<scene>-<kind>`.
    Nothing is written if the folder is there already; it appears only when it is complete.
    """
    import numpy as np

    (folder / "images").mkdir()

    rows = []
    for number in tqdm(range(count), desc="drawing scenes", disable=count < 10_000):
        index, place = divmod(number, ROWS_A_SCENE)
        if place == 0:
            rng, drawn = np.random.default_rng((TRAIN_SEED, 1, index)), scene(TRAIN_SEED, index)
            image = _save(drawn.image, folder, f"images/{index:06d}.png")
            about = questions(drawn.things, rng)
            about = [about[i] for i in rng.permutation(len(about))]
            about = sorted(about, key=lambda q: q.kind != "box")[:ROWS_A_SCENE]
        if number % TEXT_ONLY_SHARE == TEXT_ONLY_SHARE - 1:
            things = sample_layout(rng)
            told = [q for q in questions(things, rng) if q.kind != "box"]  # the box is among the words
            q = told[rng.integers(len(told))]
            rows.append(llava_row(number, None, [(f"{describe(things)} {prompt(q)}", q.answer)]))
        else:
            rows.append(llava_row(number, image, [(prompt(about[place]), about[place].answer)]))

    held_out = []
    for index in range(HELD_OUT_SCENES):
        drawn = scene(HELD_OUT_SEED, index)
        image = _save(drawn.image, folder, f"images/held_out_{index:06d}.png")
        for q in questions(drawn.things, np.random.default_rng((HELD_OUT_SEED, 1, index))):
            if q.kind in (*SHORT_KINDS, "box"):
                held_out.append(llava_row(f"{index}-{q.kind}", image, [(prompt(q), q.answer)]))
    # Any first part of the file is a fair sample of kinds and scenes.
    held_out = [held_out[i] for i in np.random.default_rng(HELD_OUT_SEED).permutation(len(held_out))]

    for name, content in (("train", rows), ("held_out", held_out), ("priors", answer_priors(training_questions()))):
        (folder / f"{name}.json").write_text(json.dumps(content))


def miniature_llava(count: int) -> Path:
    """The folder of `write_llava` in the user's cache, written on first use."""
    return write_llava(cached(f"llava-v{WORLD_VERSION}-{count}"), count)


def cached(name: str) -> Path:
    """Where a folder of the miniature world lies in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prismatic" / "miniature" / name


def _save(image, folder: Path, name: str) -> str:
    Image.fromarray(image).save(folder / name, compress_level=1)
    return name
