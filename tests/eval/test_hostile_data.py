"""Benchmarks' files with anything in them: good examples or one ValueError that names the file; bombs are recorded."""

import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
from golden_cases import requires_samples, samples_dir
from image_bombs import bomb
from mutations import judged, mutated, reads, refuses

from eval.data.readers import (
    flag,
    name_of,
    read_rows,
    shown,
    text,
    texts,
    whole,
)
from eval.data.reference_metadata import read_prepared
from eval.data.selection import check_images, without_area
from eval.runner import Job, run_job
from eval.task import Example
from eval.tasks import get_task
from prismatic.miniature.benchmarks import write_benchmarks
from prismatic.text.parsing import box_fractions, true_box

MUTATIONS = 120  # of each file
FILES = {  # of a task, those that are mutated
    "refcoco": ("refs(unc).p", "refs(umd).p", "instances.json"),
    "ocid-ref": ("val_expressions.json",),
    "tallyqa": ("test.json",),
    "ai2d": (".png.json",),
    "vqav2": ("questions.json", "annotations.json"),
    "gqa": ("testdev_balanced_questions.json",),
    "vizwiz": ("val.json",),
    "textvqa": ("TextVQA_0.5.1_val.json", "textvqa_val_v051_ocr.jsonl"),
    "pope": ("coco_pope_popular.json",),
    "vsr": ("test.jsonl",),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A writable copy of the annotations, without pictures."""
    root = tmp_path_factory.mktemp("samples") / "data"
    ignored = shutil.ignore_patterns("*.jpg", "*.png", "llava", "imagenet", "coco", "ade20k", "images")
    shutil.copytree(samples_dir(), root, ignore=ignored)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def content_of(path: Path):
    if path.suffix == ".p":
        return pickle.loads(path.read_bytes())
    text = path.read_text()
    return json.loads(text) if text[0] == "[" or text.count("\n{") == 0 else [json.loads(t) for t in text.splitlines()]


def bytes_of(path: Path, content, rng) -> bytes:
    """What a file of that name has for its content, now and then cut off."""
    if path.suffix == ".p":
        return pickle.dumps(content, protocol=2)
    lines = path.suffix == ".jsonl" or path.name.startswith("coco_pope")
    text = "\n".join(map(json.dumps, content)) if lines and isinstance(content, list) else json.dumps(content)
    return (text[: rng.randrange(len(text) + 1)] if rng.random() < 0.05 else text).encode()


@requires_samples
@pytest.mark.parametrize("name", FILES)
def test_mutated_raw_files(name, root):
    task, rng, refused, tried = get_task(name), random.Random(name), 0, 0
    paths = [p for p in sorted(root.rglob("*")) if p.is_file() and p.name.endswith(FILES[name])]
    assert len(task.read(root, task.split)) > 0
    paths = [p for p in paths if reads(task, root, p)]
    assert paths
    for path in paths if len(paths) < 4 else rng.sample(paths, 3):
        content = content_of(path)
        for _ in range(MUTATIONS // min(len(paths), 3)):
            odd = bytes_of(path, mutated(content, rng), rng)
            refused += refuses(task, root, path, odd, named=path.parent.name)
            tried += 1
    assert refused > 10 and tried >= MUTATIONS - 3
    print(f"{name}: {refused} of {tried} refused")


PREPARED = {
    "refcoco": {"refer_dataset": "RefCOCO", "ref_id": 1, "sent_id": 2, "ref_expression": "a", "bbox": [0, 0, 1, 1]},
    "ocid-ref": {"example_id": 1, "ref_expression": "a", "bbox": [0, 0, 1, 1], "clutter_split": "Minimum Clutter"},
    "tally-qa": {"question_id": 1, "question": "a", "answer": 3, "split": "simple"},
    "vsr": {"example_id": 1, "caption": "a", "true_false": True, "relation": "on"},
    "ai2d": {"question_id": 1, "question": "a", "answer_choices": ["a"] * 4, "answer_label": 1, "split": "test"},
    "vqa-v2": {"question_id": 1, "question": "a", "all_answers": ["b"] * 10, "answer_type": "c", "question_type": "d"},
    "gqa": {"question_id": 1, "question": "a", "answer": "b"},
    "vizwiz": {"question_id": 1, "question": "a", "answers": [{"answer": "b"}] * 10, "answerable": 1},
    "text-vqa": {"question_id": 1, "question": "a", "answers": ["b"] * 10},
    "pope": {"split": "popular", "split_question_id": 1, "question": "a", "answer": "yes"},
}
TASK_OF = {"tally-qa": "tallyqa", "vqa-v2": "vqav2", "text-vqa": "textvqa"}


@pytest.mark.parametrize("family", PREPARED)
def test_mutated_prepared_files(family, tmp_path):
    task, rng, refused = get_task(TASK_OF.get(family, family)), random.Random(family), 0
    path = tmp_path / "metadata-full.json"
    rows = {str(number): PREPARED[family] | {"img_path": f"{number}.jpg"} for number in range(3)}
    path.write_text(json.dumps(rows))
    judged(task, read_prepared(path, family))
    for _ in range(MUTATIONS):
        path.write_bytes(bytes_of(path, mutated(rows, rng), rng))
        try:
            examples = read_prepared(path, family)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
        else:
            judged(task, examples)
    assert refused > 20
    print(f"{family}: {refused} of {MUTATIONS} refused")


def test_errors_name_the_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 1 is not as expected"):
        read_rows(tmp_path / "rows.jsonl", "vsr", "rows")
    folder = tmp_path / "vsr"
    folder.mkdir()
    row = {"image": "a.jpg", "caption": "b", "label": 1, "relation": "on"}
    for change, reason in (
        ({"label": 2}, "2 is neither true nor false"),
        ({"caption": None}, "question None"),
        ({"image": "../a"}, "inside the data root"),
    ):
        (folder / "test.jsonl").write_text("\n".join(json.dumps(r) for r in (row, row, row | change)))
        with pytest.raises(ValueError, match=rf"test\.jsonl: row 2 is not as expected \(.*{reason}"):
            get_task("vsr").read(tmp_path, "test")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "..\\x", "a\0b", "a/../../b"])
def test_no_example_leads_out_of_the_data_root(path):
    with pytest.raises(ValueError, match="expected a path inside the data root"):
        Example("1", path, "?", "Yes")


class Blind:
    """An engine that answers yes to whatever it can look at."""

    batch_size = 4
    option_ids = staticmethod(lambda options: [[1] for _ in options])
    prepare = staticmethod(lambda image: image.size)

    def answer(self, pictures, questions):
        from eval.engine import Answer

        return [Answer(text="True", probabilities=[0.9, 0.1]) for _ in questions]


def test_a_bomb_is_a_bad_sample_and_the_run_goes_on(tmp_path):
    from accelerate import PartialState

    write_benchmarks(tmp_path / "data", 6)
    task = get_task("vsr")
    examples = task.read(tmp_path / "data", task.split)
    armed = examples[0].image
    (tmp_path / "data" / armed).write_bytes(bomb())
    check_images(task, examples, tmp_path / "data")
    job = Job("vsr", task, examples, tmp_path / "data")
    entry = run_job(job, Blind(), PartialState(), tmp_path / "out", "f", box_frame="image")
    records = [json.loads(line) for line in (tmp_path / "out/vsr/samples.jsonl").read_text().splitlines()]
    bad = [record for record in records if record["image"] == armed]
    assert bad and all("decompression bomb" in record["error"] and record["score"] == 0 for record in bad)
    assert entry["errors"] == len(bad) < len(records) == len(examples)
    assert all(record["output"] == "True" for record in records if record["image"] != armed)


@pytest.mark.parametrize("value", [True, 1, "true", "True", " yes ", "1"])
def test_what_means_yes(value):
    assert flag(value) is True


@pytest.mark.parametrize("value", [False, 0, "false", "FALSE", "no", "0"])
def test_what_means_no(value):
    assert flag(value) is False


@pytest.mark.parametrize("value", [2, -1, 0.5, None, "", "maybe", [True], {"a": 1}, float("nan")])
def test_what_means_neither(value):
    with pytest.raises(ValueError, match="is neither true nor false"):
        flag(value)


def test_whole_numbers_are_those_alone():
    assert [whole(value, below=16) for value in (3, "3", 3.0, "0")] == [3, 3, 3, 0]
    for value in (-1, 16, 3.5, "3.0", "x", True, None, [3], float("inf"), float("nan")):
        with pytest.raises(ValueError):
            whole(value, below=16)


def test_ids_and_texts_are_those_alone_and_errors_are_short():
    laughs = ["ha"]
    for _ in range(40):
        laughs = [laughs] * 10
    assert name_of(7) == "7" and name_of("7") == "7" and text("a") == "a"
    for read in (name_of, text, texts):
        for value in (laughs, {"a": laughs}, True, None, 1.5):
            with pytest.raises(TypeError) as error:
                read(value)
            assert len(str(error.value)) < 200
    assert shown("\x1b" * 1000) == ascii("\x1b" * 1000)[:80]


@pytest.mark.parametrize(
    ("box", "good"),
    [
        ([0, 0, 100, 50], True),
        ([-1, -2, 102, 51], True),
        ([10, 10, 10, 20], True),
        ([20, 10, 10, 20], False),  # negative width
        ([10, 20, 20, 10], False),
        ([50, 10, 110, 20], False),  # corners taken for x, y, width, height
        ([10, 10, 20, 60], False),
        ([-9, 0, 10, 10], False),
    ],
)
def test_boxes_lie_in_their_image(box, good):
    if good:
        assert true_box(box, 100, 50) == box_fractions(box, 100, 50)
    else:
        with pytest.raises(ValueError, match="is not inside its image of 100 x 50 pixels"):
            true_box(box, 100, 50)


def test_boxes_without_area_are_counted():
    answers = [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.1, 0.4], (0, 0, 1, 0), ["a", "b", "c", "d"], "no", None]
    assert without_area([Example(str(n), "x.png", "it", answer, "", {}) for n, answer in enumerate(answers)]) == 2


@requires_samples
@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_changes_nothing(name, root, tmp_path):
    """In front of every file of text that a task reads."""
    task = get_task(name)
    expected = task.read(root, task.split)
    shutil.copytree(root, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file() and path.suffix != ".p":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert task.read(tmp_path / "data", task.split) == expected
