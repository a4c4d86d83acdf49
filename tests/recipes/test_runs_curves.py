"""The page's tab of runs: curves that are read on as they are written, and their chart."""

import html
import math
import re
import threading

import numpy as np
from run_folders import LOSS, made, recorded, rows

from recipes.web import run_files, run_metrics
from recipes.web.run_curves import chart, smoothed, thinned
from recipes.web.run_data import Runs
from recipes.web.run_files import Folder
from recipes.web.run_metrics import Curves


def test_losses_that_are_no_numbers_are_no_obstacle(tmp_path):
    values = ["NaN", "Infinity", "-Infinity", "1e308", "-1", "0", '"x"', "null", "true", "1" + "0" * 400, "0.5"]
    made(
        tmp_path / "a",
        metrics_jsonl="".join(f'{{"step": {i}, "loss": {v}, "validation_loss": {v}}}\n' for i, v in enumerate(values)),
    )
    runs = Runs(tmp_path)
    (run,) = runs.all()
    curve = Curves(runs.files).read(tmp_path / "a" / "metrics.jsonl")
    assert run.loss == 0.5 and curve.losses[-1] == 0.5 and len(curve.losses) == 7
    for log in (False, True):
        assert "nan" not in chart([("a", curve)], log=log, rate=True).replace("best validation loss -inf", "")


def test_long_metrics_are_read_once_and_drawn_thin(tmp_path, monkeypatch):
    steps, parsed = 100_000, []
    text = "".join(
        f'{{"step": {i + 1}, "epoch": 0, "loss": {9 if i == 77_777 else 1 / (i + 1)}, "learning_rate": 0.1}}\n'
        for i in range(steps)
    )
    path = (
        made(tmp_path / "long", metrics_jsonl=text, config_yaml="llm: a\nprojector: b\nmax_steps: 200000\n")
        / "metrics.jsonl"
    )
    real = run_files.row_of

    def counted(line):
        parsed.append(1)
        return real(line)

    monkeypatch.setattr(run_metrics, "row_of", counted), monkeypatch.setattr(run_files, "row_of", counted)
    assert rows(tmp_path)["long"]["step"] == "100,000 of 200,000" and len(parsed) < 1000, "the list reads the end"
    curves = Curves(Folder(tmp_path))
    first = curves.read(path)
    assert len(first.steps) == steps and math.isclose(first.losses[-1], 1 / steps)
    parsed.clear()
    with path.open("a") as file:
        file.write('{"step": 100001, "loss": 2.0}\n{"step": 100002, "lo')
        file.flush()
        second = curves.read(path)
        file.write('ss": 3.0}\n')
    assert second.losses[-1] == 2.0 and curves.read(path).losses[-1] == 3.0 and len(parsed) == 2
    assert len(first.steps) == steps, "a curve that was given stays as it is"
    kept, values = thinned(first.steps, first.losses)
    assert len(kept) <= 602 and values.max() == 9 and kept[values.argmax()] == 77_778 and (np.diff(kept) > 0).all()
    assert len(chart([("long", first)], rate=True)) < 300_000
    path.write_text(LOSS)  # a run that resumes writes its file anew
    assert curves.read(path).losses.tolist() == [0.5]
    path.write_text(LOSS.replace("0.5", "0.7") + LOSS)
    assert curves.read(path).losses.tolist() == [0.7, 0.5]


def test_curves_are_read_by_several_threads_while_they_are_written(tmp_path):
    path, wrong = made(tmp_path / "a", metrics_jsonl="") / "metrics.jsonl", []
    curves = Curves(Folder(tmp_path))

    def draw():
        try:
            for _ in range(60):
                curve = curves.read(path)
                assert len(curve.steps) == len(curve.losses)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    [thread.start() for thread in threads]
    with path.open("a") as file:
        for step in range(2000):
            file.write(f'{{"step": {step}, "loss": 1.0}}\n')
            file.flush()
    [thread.join() for thread in threads]
    assert not wrong and len(curves.read(path).steps) == 2000


def test_the_running_average_has_no_bias():
    assert np.allclose(smoothed(np.full(500, 3.0)), 3) and smoothed(np.array([2.0, 4.0]))[0] == 2
    noisy = np.random.default_rng(0).normal(1, 0.5, 4000)
    assert smoothed(noisy)[-1000:].std() < 0.1 and abs(smoothed(noisy)[-1000:].mean() - 1) < 0.05


def test_the_chart_takes_the_colours_of_the_page(tmp_path):
    runs = Runs(recorded(tmp_path / "runs"))
    read = [(n, Curves(runs.files).read(p)) for run in runs.all() for n, p in runs.metrics(run)]
    drawn = chart(read, log=True, rate=True)
    assert drawn.count("<svg") == 2 and drawn.count('role="img"') == 2 and "currentColor" in drawn
    assert "<style" not in drawn and "#0a0b0c" not in drawn and "<!--" not in drawn, "styles would be the whole page's"
    assert "mim: step 4, loss 0.9467; best validation loss 0.9625 at step 3" in text(drawn)
    assert "align: step 5, loss 1.12;" in text(drawn) and "classify: step 5, loss 2.411; best" in text(drawn)
    many = chart([(f"run {i}", read[0][1]) for i in range(11)])
    assert "3 more curves are not drawn" in many
    assert "No losses" in chart([]) and "No losses" in chart([("evaluate", dict(read)["evaluate"])])


def text(page):
    """HTML without its elements."""
    return html.unescape(re.sub("<[^>]*>", "", page))
