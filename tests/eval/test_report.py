"""The page: what it shows, that it needs nothing else, and that nothing a model says can act."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_folders import guesses, write_evaluation
from golden_cases import requires_samples, samples_dir
from PIL import Image

from eval.report import charts, gallery
from eval.report.html_report import scores_table, write_report
from eval.report.runs import read_runs
from eval.scoring import bootstrap
from eval.tasks import get_task
from prismatic.miniature.benchmarks import write_benchmarks

TASKS = ("refcoco", "tallyqa", "vsr")
ATTACK = "</dd></svg><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} $x_1$ --> \x00 \ud800"


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def images(self, kind: str) -> list[bytes]:
        sources = [attributes["src"] for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(s.partition(",")[2]) for s in sources if s.startswith(f"data:image/{kind};base64,")]

    def check_harmless(self) -> None:
        """No other file is needed, and nothing can act."""
        assert not {"script", "iframe", "object", "embed", "link", "form", "a"} & {tag for tag, _ in self.tags}
        for tag, attributes in self.tags:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            assert all(
                v.startswith("data:image/") for name, v in attributes.items() if name in ("src", "href", "srcset")
            )
        assert any("default-src 'none'" in a.get("content", "") for tag, a in self.tags if tag == "meta")
        for svg in self.images("svg+xml"):
            assert not [e.tag for e in ElementTree.fromstring(svg).iter() if "script" in str(e.tag)]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data") / "root", 24)


@pytest.fixture(scope="module")
def evaluated(root, tmp_path_factory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("runs") / "one", root, TASKS, guesses(1, 0.5))


def test_table(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    (run,) = read_runs([evaluated])
    for key, task in results["tasks"].items():
        task["intervals"] = bootstrap.intervals(run.records(key), task["metrics"], task["main"])
    header, _, *rows = (re.split(r"\s{2,}", line.strip()) for line in scores_table(results).splitlines())
    assert header[:6] == ["task", "examples", "metric", "score", "95 % interval", "majority"]
    for (key, task), row in zip(results["tasks"].items(), rows, strict=True):
        told = dict(zip(header, row, strict=True))
        low, high = task["intervals"]["accuracy"]
        assert told["task"] == key and told["examples"] == str(task["examples"])
        assert told["score"] == f"{task['metrics']['accuracy']:.1%}"
        assert told["95 % interval"] == f"{low:.1%} .. {high:.1%}" and low < task["metrics"]["accuracy"] < high
        failures = task["metrics"].get("parse_failures")
        assert told["parse failures"] == ("-" if failures is None else f"{failures:.1%}")
    assert "51.5%" in scores_table(results) and "errors" not in header
    results["tasks"]["vsr"] |= {"errors": 3, "questions_per_second": None, "metrics": {"accuracy": None}}
    assert "errors" in scores_table(results)


def test_page_of_one_run(evaluated):
    path = write_report(evaluated)
    page, first = Page(path), path.read_bytes()
    page.check_harmless()
    assert write_report(evaluated).read_bytes() == first  # the same every time
    (run,) = read_runs([evaluated])
    shown = len(page.images("jpeg"))
    wrong = {key: [r for r in run.records(key) if r["score"] == 0] for key in TASKS}
    assert shown == sum(min(24, len(records)) for records in wrong.values()) > 50
    for key, task in run.tasks.items():
        assert f"{min(24, len(wrong[key]))} of {len(wrong[key])}" in page.text
        low, high = bootstrap.intervals(run.records(key), task["metrics"], "accuracy")["accuracy"]
        assert f"{low:.1%} .. {high:.1%}" in page.text
    assert len(page.images("svg+xml")) == 3  # all tasks, subsets of two of them
    assert "radar" not in first.decode() and "It is on the left." in page.text and "RefCOCO+" in page.text
    assert '"model_fingerprint": "fedcba9876543210"' in page.text and '"precision": "fp32"' in page.text


def test_cards_are_wrong_answers(evaluated, root):
    (run,) = read_runs([evaluated])
    records = run.records("tallyqa")
    cards, count = gallery.cards("tallyqa", [run], [records], root)
    by_id = {r["id"]: r for r in records}
    assert count == sum(r["score"] == 0 for r in records)
    for card in cards:
        record = by_id[card["id"]]
        (answer,) = card["answers"]
        assert record["score"] == answer["score"] == 0 and answer["output"] == record["output"]
        number = "ABCDEFGHIJKLMNOP".index(record["answer"])
        assert card["truth"] == f"{record['answer']}. {number}"
        assert answer["notes"][0].startswith(f"{record['output']}. ") and " 60%, " in answer["notes"][0]
    assert gallery.cards("tallyqa", [run], [records[::-1]], root)[0] == cards


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=int)


def test_boxes_are_drawn_where_they_are(tmp_path):
    """On a grey image: truth green, prediction red, also of a model that answers in a padded square."""
    Image.new("RGB", (400, 200), (128, 128, 128)).save(tmp_path / "grey.png")
    record = {
        "id": "1",
        "image": "grey.png",
        "question": "the thing",
        "answer": [0.1, 0.2, 0.4, 0.8],
        "subset": "",
        "info": {"width": 400, "height": 200},
        "output": "[0.5, 0.35, 0.9, 0.7]",
        "box_frame": "padded-square",
    }
    record |= get_task("refcoco").scorer.judge(record)
    assert record["box"] == pytest.approx([0.5, 0.2, 0.9, 0.9])
    (card,), _ = gallery.cards("refcoco", [type("R", (), {"name": "r"})], [[record]], tmp_path)
    assert card["answers"][0]["notes"] == ["IoU 0.00"] and card["truth"] == "0.10, 0.20, 0.40, 0.80"
    image = pixels(card["picture"])
    assert image.shape == (150, 300, 3)
    red, green = image[..., 0], image[..., 1]
    for box, mask in ((record["answer"], green - red > 60), (record["box"], red - green > 60)):
        rows, columns = np.nonzero(mask)
        drawn = [columns.min() / 300, rows.min() / 150, columns.max() / 300, rows.max() / 150]
        assert drawn == pytest.approx(box, abs=0.025)
        middle = mask[int(150 * (box[1] + box[3]) / 2), int(300 * (box[0] + box[2]) / 2)]
        assert not middle  # lines only
    both = [(gallery.TRUTH, record["box"]), (charts.colour(0), record["box"])]
    image = pixels(gallery.picture(record, both, tmp_path / "grey.png"))
    assert (image[..., 1] - image[..., 0] > 60).sum() > 200 and (image[..., 0] - image[..., 1] > 60).sum() > 200
    outside = gallery.picture(
        record, [("#ff0000", [-3.0, 0.5, 7.0, 1.5]), ("#0000ff", [2, 2, 3, 3])], tmp_path / "grey.png"
    )
    assert outside.startswith("data:image/jpeg")
    record |= {"output": "about 0.2 0.3 0.4 0.5"} | get_task("refcoco").scorer.judge(record | {"output": "at 2 3 4 5"})
    (card,), _ = gallery.cards("refcoco", [type("R", (), {"name": "r"})], [[record]], tmp_path)
    assert "not a list of four fractions" in card["answers"][0]["notes"][0]


def test_what_models_say_is_inert(root, tmp_path):
    def attack(task, example):
        if task.name == "vsr" and len(example.question) % 2:
            return {"output": "", "options": ["True", "False"], "probabilities": None, "error": ATTACK}
        return {"output": ATTACK}

    out = write_evaluation(tmp_path / "<script>alert(3)<", root, ["refcoco", "vsr"], attack)
    results = json.loads((out / "results.json").read_text())
    results |= {"model": ATTACK, "settings": {ATTACK: ATTACK}}
    (out / "results.json").write_text(json.dumps(results))
    records = [json.loads(line) for line in (out / "refcoco" / "samples.jsonl").read_text().splitlines()]
    for record in records:
        record |= {"id": record["id"] + ATTACK, "subset": ATTACK, "prompt": ATTACK}
    (out / "refcoco" / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    results["tasks"]["refcoco"]["metrics"] |= {f"accuracy/{ATTACK}": 0.0}
    (out / "results.json").write_text(json.dumps(results))
    page = Page(write_report(out))
    page.check_harmless()
    assert page.text.count("<script>alert(1)</script>") > 24 and "{{ 7 * 7 }}" in page.text
    other = write_evaluation(tmp_path / "other", root, ["refcoco", "vsr"], guesses(1, 0.5))
    page = Page(write_report(other, [out]))
    page.check_harmless()
    assert "<script>alert(3)<" in page.text


def test_errors_are_listed_with_their_reason(root, tmp_path):
    def answer(task, example):
        fine = len(example.question) % 2
        return {"output": "[0, 0, 1, 1]"} if fine else {"output": "", "error": f"ValueError: {example.image} is odd"}

    out = write_evaluation(tmp_path / "run", root, ["ocid-ref"], answer)
    (run,) = read_runs([out])
    failed = [r for r in run.records("ocid-ref") if "error" in r]
    page = Page(write_report(out))
    assert f"{len(failed)} of the answers failed with an error" in page.text and 0 < len(failed) < 100
    assert page.text.count("is odd") == min(len(failed), 50)
    cards, _ = gallery.cards("ocid-ref", [run], [run.records("ocid-ref")], root)
    assert not {card["id"] for card in cards} & {r["id"] for r in failed}


def test_missing_and_damaged_images(root, evaluated, tmp_path):
    out = write_evaluation(tmp_path / "run", root, ["vsr"], guesses(1, 0.0))
    (run,) = read_runs([out])
    images = sorted({r["image"] for r in run.records("vsr")})
    (tmp_path / "data" / images[0]).parent.mkdir(parents=True)
    (tmp_path / "data" / images[0]).write_bytes((root / images[0]).read_bytes()[:60])
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps(results | {"data_root": str(tmp_path / "data")}))
    page = Page(write_report(out))
    assert not page.images("jpeg") and "the image is not there" in page.text
    assert "the image cannot be shown" in page.text or images[0] not in page.text
    (out / "results.json").write_text(json.dumps(results | {"data_root": None}))
    assert "the image is not there" in Page(write_report(out)).text


def test_page_of_several_runs(root, evaluated, tmp_path):
    other = write_evaluation(tmp_path / "two", root, TASKS, guesses(2, 0.8))
    page = Page(write_report(evaluated, [other]))
    page.check_harmless()
    assert any("radar" in a.get("alt", "") for tag, a in page.tags if tag == "img")
    runs = read_runs([evaluated, other])
    differ = 0
    for key in TASKS:
        pairs = list(zip(runs[0].records(key), runs[1].records(key), strict=True))
        differing = sum(a["score"] != b["score"] for a, b in pairs)
        assert f"{min(24, differing)} of {differing}" in page.text
        differ += min(24, differing)
    assert len(page.images("jpeg")) == differ
    few = write_report(evaluated, [write_evaluation(tmp_path / "few", root, TASKS[:2], guesses(3, 0.7))])
    assert "No radar chart" in Page(few).text and "vsr: few has no results" in Page(few).text
    with pytest.raises(ValueError, match="no results.json"):
        write_report(evaluated, [tmp_path])


def test_dollar_signs_are_no_formulas():
    label = r"$\frac{$"
    row = {"label": label, "scores": {label: 0.5}, "intervals": {}}
    assert ElementTree.fromstring(charts.bars([row], [label, "b"], title=label, x=label, y=label)) is not None
    assert ElementTree.fromstring(charts.radar([label] * 3, {label: [0.0, 1.0, -1.0]}, title=label)) is not None


@pytest.fixture
def drawn(monkeypatch):
    """The figures of charts, as matplotlib has them."""
    found, real = [], charts._svg
    monkeypatch.setattr(
        charts, "_svg", lambda draw, size: real(lambda figure: (draw(figure), found.append(figure)), size)
    )
    return found


def test_bars_end_at_all_and_the_legend_names_what_is_drawn(drawn):
    rows = [
        {"label": "one", "scores": {"a": 0.9, "b": None}, "intervals": {"a": [-0.2, 1.3]}, "majority": 0.5},
        {"label": "two", "scores": {"a": 1.0}, "intervals": {}},
    ]
    charts.bars(rows, ["a", "b"], title="Scores", x="accuracy", y="task")
    axes = drawn[0].axes[0]
    assert axes.get_xlim() == (0, 1) and axes.get_xticklabels()[-1].get_text() == "100%"
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("Scores", "accuracy", "task")
    (bar,) = [part for part in axes.containers if hasattr(part, "has_xerr")]
    assert bar.lines[2][0].get_segments()[0][:, 0].tolist() == [0, 1], "the interval is cut"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["majority class", "a"]


def test_differences_lie_on_both_sides_of_zero_with_their_intervals(drawn):
    rows = [
        {"label": "b - a", "mean": 0.1, "interval": [-0.05, 0.25]},
        {"label": "one seed", "mean": -0.2, "interval": None},
    ]
    charts.differences(rows, title="Differences", x="points", y="")
    axes = drawn[0].axes[0]
    zero, *lines = ([float(x) for x in line.get_xdata()] for line in axes.lines)
    assert zero == [0, 0] and lines == [[-0.05, 0.25], [0.1], [-0.2, -0.2], [-0.2]]
    left, right = axes.get_xlim()
    assert left == -right and right > 0.25
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b - a", "one seed"]


def test_radar_shows_the_values():
    """The lines' points, read back from the drawing, lie at the distances that the values say."""
    values = {"a": [1.0, -1.0, 0.5, 0.0], "b": [-1.0, 1.0, -0.5, 0.25]}
    text = charts.radar(["w", "x", "y", "z"], values, title="z-scores").decode()
    tree = ElementTree.fromstring(text)
    paths = {}
    for element in tree.iter("{http://www.w3.org/2000/svg}path"):
        style = element.get("style", "")
        for place, name in enumerate(values):
            if f"stroke: {charts.colour(place)}" in style and "stroke-width: 1.8" in style:
                numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", element.get("d"))]
                paths.setdefault(name, np.array(numbers).reshape(-1, 2))
    # spokes point up, right, down and left
    for name, line in values.items():
        ends = paths[name][:4]
        up, right, down, left = ends
        assert right[0] > left[0] and down[1] > up[1]
        middle = np.array([up[0], right[1]])
        lengths = np.linalg.norm(ends - middle, axis=1)
        reach = 1.15
        assert lengths / lengths[0] == pytest.approx([(v + reach) / (line[0] + reach) for v in line], rel=1e-3)


@requires_samples
def test_genuine_answers(tmp_path):
    """LLaVA-1.5-13B on POPE and TextVQA; made-up ones on painted diagrams and photographs."""
    said = {}
    for key, path in (("pope", "pope"), ("textvqa-ocr", "textvqa")):
        lines = (samples_dir() / path / "llava15_13b/answers.jsonl").read_text().splitlines()
        task = get_task(key)
        for example, line in zip(task.read(samples_dir(), task.split), lines, strict=False):
            said[key, example.id] = json.loads(line)["text"]

    def answer(task, example):
        text = said.get((task.name, example.id))
        return {"output": text} if text is not None else guesses(1, 0.3)(task, example)

    keys = ["pope", "textvqa-ocr", "ocid-ref"]
    out = write_evaluation(tmp_path / "llava", samples_dir(), keys, answer)
    (run,) = read_runs([out])
    metrics = run.tasks["pope"]["metrics"]
    found = bootstrap.intervals(run.records("pope"), metrics, "mean_accuracy")
    assert set(found) == {"accuracy", "mean_accuracy", *(f"accuracy/{s}" for s in ("adversarial", "popular", "random"))}
    assert found["mean_accuracy"][0] <= metrics["mean_accuracy"] <= found["mean_accuracy"][1]
    page = Page(write_report(out))
    page.check_harmless()
    assert page.images("jpeg")
    cards, _ = gallery.cards("textvqa-ocr", [run], [run.records("textvqa-ocr")], samples_dir())
    assert cards and all(re.search(r" \(\d+\)", card["truth"]) for card in cards)
