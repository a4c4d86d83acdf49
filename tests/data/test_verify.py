import json
import sys

import numpy as np
import pytest
from datasets import config as datasets_config
from golden_cases import requires_samples, samples_dir
from picture_files import picture, write_tar
from PIL import Image
from source_files import CONTAINERS, LAYOUTS, members_of, pictures, write_shards

from prismatic.data import verify as verifying
from prismatic.data.verify import report, verify


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["verify", *map(str, arguments)])
    try:
        code = verifying.main()
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


@requires_samples
def test_genuine_rows_are_well(monkeypatch, capsys):
    root = samples_dir() / "llava" / "download" / "llava-v1.5-instruct"
    rows = json.loads((root / "llava_v1_5_mix665k.json").read_text())
    code, printed = run(monkeypatch, capsys, root / "llava_v1_5_mix665k.json", root)
    assert code == 0
    lines = dict(line.rsplit(maxsplit=1) for line in printed.out.splitlines() if line[0] != " ")
    images = [row["image"] for row in rows if "image" in row]
    answers = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "gpt"]
    assert int(lines["rows"]) == len(rows)
    assert int(lines["text-only rows"]) == len(rows) - len(images)
    assert int(lines["images decoded"]) == len(images)
    assert int(lines["turns"]) == sum(len(row["conversations"]) for row in rows)
    assert int(lines["empty answers"]) == answers.count("")
    assert printed.out.endswith("no problems\n")


def turns(roles="hg", answer="yes"):
    return [{"from": {"h": "human", "g": "gpt", "x": "bot"}[role], "value": answer} for role in roles]


def test_every_problem_is_found_and_named(tmp_path, monkeypatch, capsys):
    for name, size in (("small.png", (8, 6)), ("wide.png", (30, 10)), ("large.png", (12, 40))):
        Image.fromarray(np.zeros(size[::-1], dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing else")
    images = ["small.png", "wide.png", "large.png", "gone.png", "broken.jpg", "../x.png", "/etc/hostname", None]
    rows = [{"id": f"image-{n}", "image": image, "conversations": turns()} for n, image in enumerate(images)]
    rows += [{"id": f"turns-{roles}", "conversations": turns(roles)} for roles in ("gh", "hhg", "hgh", "hx")]
    rows += [{"id": "empty", "conversations": turns("hg", " \n")}]
    rows += [{"id": f"gone-{n}", "image": f"{n}.png", "conversations": turns()} for n in range(100)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    findings = verify(tmp_path / "rows.json", tmp_path)
    assert findings.counts == {
        "rows": 113,
        "text-only rows": 6,
        "turns": 228,
        "empty answers": 1,
        "rows, <image> unsaid": 107,
        "unanswered questions": 2,
        "missing images": 101,
        "unreadable images": 1,
        "refused paths": 2,
        "role-order problems": 3,
    }
    assert sorted(findings.sizes) == [(8, 6), (12, 40), (30, 10)]
    named = {
        kind: [message.split("id ")[1].split("'")[1] for message in found] for kind, found in findings.problems.items()
    }
    assert named == {
        "missing images": ["image-3", *(f"gone-{n}" for n in range(9))],
        "unreadable images": ["image-4"],
        "refused paths": ["image-5", "image-6"],
        "<image> without image": [],
        "role-order problems": ["turns-gh", "turns-hhg", "turns-hx"],
    }
    text = report(findings)
    assert "... and 91 more" in text and text.endswith("107 problems")
    width = next(line for line in text.splitlines() if "width" in line)
    assert [int(word) for word in width.split() if word.isdigit()] == [8, 12, 30]

    code, printed = run(monkeypatch, capsys, tmp_path / "rows.json", tmp_path)
    assert code == 1 and printed.out == text + "\n"


def test_malformed_files_end_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "rows.json").write_text('[{"id": 1}]')
    code, printed = run(monkeypatch, capsys, tmp_path / "rows.json", tmp_path)
    assert code == 1
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and "row 0" in printed.err


def test_help_teaches(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "--help")
    assert code == 0
    for word in ("json", "root", "missing", "refused", "example", "exit code"):
        assert word in printed.out


def test_images_of_a_folder(tmp_path, monkeypatch, capsys):
    for n in range(70):
        path = tmp_path / "images" / f"class {n % 3}" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if n % 7 == 0 else "RGB", (10 + n, 20)).save(path)
    code, printed = run(monkeypatch, capsys, tmp_path / "images")
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert code == 0
    for line in ("images 70", "classes 3", "images decoded 70", "stored as RGB 60", "stored as L 10", "no problems"):
        assert line in lines
    assert "width (pixels) 10 smallest 44 median 79 largest" in lines

    for n in range(0, 24, 2):
        (tmp_path / "images" / f"class {n % 3}" / f"{n:02d}.png").write_bytes(b"damaged")
    code, printed = run(monkeypatch, capsys, tmp_path / "images")
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert code == 1
    assert "unreadable images 12" in lines and "... and 2 more" in lines and lines[-1] == "12 problems"
    assert sum("unreadable (UnidentifiedImageError" in line for line in lines) == 10
    assert "images decoded 58" in lines


def test_scenes_and_wrong_places(tmp_path, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "miniature:5")
    assert code == 0 and "stored as RGB" in printed.out
    for place, message in (
        (tmp_path / "nothing", "nothing at"),
        (tmp_path / "rows.json", "no annotation file"),
    ):
        code, printed = run(monkeypatch, capsys, place)
        assert code == 1 and printed.err.startswith("error: ") and message in printed.err


@pytest.mark.parametrize("container", ["parquet", "disk", "tars"])
def test_conversations_in_other_containers(container, tmp_path, monkeypatch, capsys):
    if container == "tars":
        place = write_shards(tmp_path / "data", lambda row: members_of(row, pictures()[row]))
    else:
        place = CONTAINERS[container](LAYOUTS["llava"](), tmp_path / "data")
    code, printed = run(monkeypatch, capsys, place)
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert code == 0
    for line in (
        "rows 8",
        "text-only rows 2",
        "rows, several images 3",
        "images decoded 10",
        "turns 32",
        "no problems",
    ):
        assert line in lines

    rows = pictures()
    rows[2][1] = b"damaged"
    place = write_shards(tmp_path / "bad", lambda row: members_of(row, rows[row]))
    code, printed = run(monkeypatch, capsys, place)
    assert code == 1 and "row 2 (id 'r2'), image 'r2.1.png': unreadable" in printed.out
    assert printed.out.endswith("1 problems\n")


def test_tar_shards_of_images_alone(tmp_path, monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, write_tar(tmp_path / "a.tar", [("a.png", picture(1)), ("a.cls", b"0")]))
    assert code == 0 and " ".join(printed.out.split()).startswith("images 1 classes 1")
