"""Training data from a server on this machine: archives laid out as the real ones, mixed as the reference does."""

import io
import json
import os
import random
import shutil

import pytest
from evaluation_folders import zipped
from file_server import file_server
from PIL import Image

from eval import prepare as fetching
from eval.prepare import ARCHIVES
from recipes.training_data import known, mixing
from recipes.training_data import prepare as preparing
from recipes.training_data.known import find, is_there, read_table, state
from recipes.training_data.prepare import prepare
from vision_backbones import downloads, files

LLAVA, CAPTIONS = "download/llava-v1.5-instruct", "download/llava-laion-cc-sbu-558k"


def picture(kind="JPEG", colour="red", **options):
    file = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(file, kind, **options)
    return file.getvalue()


def row(identity, image, question="What?", answer="That."):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": image, "conversations": turns} if image else {
        "id": identity, "model": "", "conversations": [turns[0] | {"value": question}, turns[1]]
    }  # fmt: skip


GIF = {"save_all": True, "append_images": [Image.new("RGB", (12, 8), "blue")]}
OCR = {
    "1.gif": picture("GIF", **GIF),
    "2.png": picture("PNG"),
    "3.jpg": picture(),
    "4.jpeg": picture(),
    "5.gif": b"GIF",
}
ROWS = [
    row("1", "coco/train2017/1.jpg"), row(2, "gqa/images/2.jpg"), row("text", None), row("o1", "ocr_vqa/images/1.jpg"),
    row("o2", "ocr_vqa/images/2.jpg"), row("o4", "ocr_vqa/images/4.jpg"), row("t", "textvqa/train_images/t.jpg"),
    row("v1", "vg/VG_100K/1.jpg"), row("v2", "vg/VG_100K_2/2.jpg", answer="Grün — 日本"),
]  # fmt: skip
LVIS = [row(f"l{n}", "coco/val2017/9.jpg") for n in range(4)]
VG = [
    {"image_id": "77", "question": " Is it? ", "answer": " No. ", "task": "x"},
    {"image_id": "78", "question": "?", "answer": "a"},
]
CHART = [{"image_id": "c.1.png", "question": "How many?\n", "answer": "3"}]
LRV = [
    row("77", "lrv/lrv-vg/77.jpg", "Is it?", "No."), row("78", "lrv/lrv-vg/78.jpg", "?", "a"),
    row("c.1", "lrv/lrv-chart/c.1.png", "How many?", "3"),
]  # fmt: skip
COUNTS = {"llava-v1.5-instruct": 9, "llava-multimodal": 8, "lvis-instruct4v": 13, "llava-lrv": 12, "lrv-instruct": 16}


def as_json(content):
    return json.dumps(content).encode()


def images(folder, *names):
    return zipped({f"{folder}/{name}": picture() for name in names})


CONTENT = {  # by where it goes
    f"{LLAVA}/llava_v1_5_mix665k.json": as_json(ROWS),
    f"{LLAVA}/coco/train2017": images("train2017", "1.jpg"),
    f"{LLAVA}/gqa/images": images("images", "2.jpg"),
    f"{LLAVA}/ocr_vqa/images": zipped({f"ocr_vqa/{name}": content for name, content in OCR.items()}),
    f"{LLAVA}/textvqa/train_images": images("train_images", "t.jpg"),
    f"{LLAVA}/vg/VG_100K": images("VG_100K", "1.jpg"),
    f"{LLAVA}/vg/VG_100K_2": images("VG_100K_2", "2.jpg"),
    f"{LLAVA}/lvis_instruct4v_220k.json": as_json(LVIS),
    f"{LLAVA}/coco/val2017": images("val2017", "9.jpg"),
    f"{LLAVA}/lrv/filter_cap1.json": as_json(VG[:1]),
    f"{LLAVA}/lrv/filter_cap_more1.json": as_json(VG[1:]),
    f"{LLAVA}/lrv/chart_release_update.json": as_json(CHART),
    f"{LLAVA}/lrv/lrv-vg": images("image", "77.jpg", "78.jpg"),
    f"{LLAVA}/lrv/lrv-chart": zipped({"chart_image/c.1.png": picture("PNG"), "__MACOSX/._c.1.png": b""}),
    f"{CAPTIONS}/chat.json": as_json([row("004", "00453/004.jpg"), row("005", "00000/005.jpg")]),
    f"{CAPTIONS}/images": zipped({"00453/004.jpg": picture(), "00000/005.jpg": picture()}),
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with file_server() as running:
        running.files = {f"/{to}": content for to, content in CONTENT.items()}
        yield running


@pytest.fixture
def table(server):
    """The shipped table with the server's addresses and the numbers of its rows."""
    table = read_table()
    named = [file for part in table.values() for entry in part.values() for file in entry["files"]]
    assert {file["to"] for file in named} == CONTENT.keys(), "what the table names is what is served"
    for file in named:
        file["urls"] = [f"{server.url}/{file['to']}"]
        file.pop("gb", None)  # of the real ones: nobody's disk has to have that room here
    table["parts"]["lrv"]["rows"], table["data_sets"]["llava-pretrain-558k"]["rows"] = len(LRV), 2
    for name, count in COUNTS.items():
        table["data_sets"][name]["rows"] = count
    return table


def read(root, name, table):
    return json.loads((root / table["data_sets"][name]["annotations"]).read_text())


def shuffled_thrice(rows, rng):
    rows = list(rows)
    rng.shuffle(rows), rng.shuffle(rows), rng.shuffle(rows)
    return rows


def test_from_nothing_to_a_finetune(server, tmp_path, table, capsys):
    assert state("llava-v1.5-instruct", tmp_path, table) == "nothing"
    assert prepare("llava-v1.5-instruct", tmp_path, table) == 0
    said = capsys.readouterr().out
    annotations = tmp_path / LLAVA / "llava_v1_5_mix665k.json"
    assert f"9 rows in {annotations}, all images there" in said
    assert f"prismatic finetune --model aligned-clip-vit-l-336px+7b --data.annotations {annotations}\n" in said
    assert "1 of 4 images" in said and "5.gif" in said, "no row needs it"
    assert state("llava-v1.5-instruct", tmp_path, table) == "ready"
    assert state("lvis-instruct4v", tmp_path, table) == "partly"
    first = Image.open(tmp_path / LLAVA / "ocr_vqa/images/1.jpg")
    red, _, blue = first.convert("RGB").getpixel((3, 3))
    assert first.format == "JPEG" and red > 200 and blue < 60, "the first frame"
    assert (tmp_path / LLAVA / "ocr_vqa/images/4.jpg").read_bytes() == OCR["4.jpeg"], "a JPEG is not encoded again"
    asked = len(server.asked)
    assert prepare("llava-v1.5-instruct", tmp_path, table) == 0 and len(server.asked) == asked
    shutil.rmtree(tmp_path / LLAVA / "gqa")
    assert state("llava-v1.5-instruct", tmp_path, table) == "partly"


def test_captions_lie_where_their_rows_say(server, tmp_path, table, capsys):
    assert prepare("llava-pretrain-558k", tmp_path, table) == 0
    assert {path.name for path in (tmp_path / CAPTIONS).iterdir()} == {"chat.json", "00453", "00000"}
    assert "--model reproduction-llava-v15+7b --stage align --data.annotations" in capsys.readouterr().out
    again = len(server.asked)
    (tmp_path / CAPTIONS / "images").mkdir()
    (tmp_path / CAPTIONS / "00453").rename(tmp_path / CAPTIONS / "images/00453")  # killed while moving
    assert prepare("llava-pretrain-558k", tmp_path, table) == 0 and len(server.asked) == again
    assert (tmp_path / CAPTIONS / "00453/004.jpg").exists() and not (tmp_path / CAPTIONS / "images").exists()


def test_mixtures_have_the_rows_of_the_reference_in_its_order(server, tmp_path, table):
    """Both of its scripts seed Python's generator with 7; the second shuffles two lists, one after the other."""
    for name in ("lrv-instruct", "llava-lrv", "llava-multimodal"):
        assert prepare(name, tmp_path, table) == 0
    lvis = shuffled_thrice(ROWS + LVIS, random.Random(7))
    rng = random.Random(7)
    lrv, everything = shuffled_thrice(ROWS + LRV, rng), shuffled_thrice(lvis + LRV, rng)
    for name, rows in (("lvis-instruct4v", lvis), ("llava-lrv", lrv), ("lrv-instruct", everything)):
        path = tmp_path / table["data_sets"][name]["annotations"]
        assert path.read_text() == json.dumps(rows), "byte for byte what json.dump writes"
    assert read(tmp_path, "llava-multimodal", table) == [row for row in ROWS if row.get("image")]


@pytest.mark.parametrize(
    ("module", "step", "said"),
    [
        (downloads, "_continue", "train2017.zip"),
        (fetching, "unpack", "gqa-images.zip"),
        (shutil, "copyfileobj", "ocr_vqa/.images."),
        (fetching, "_record", "val2017.zip"),
        (files, "sync", "ocr_vqa/images/.2.jpg.unfinished"),
        (preparing, "write_mix", "lrv-instruct"),
        (mixing, "reference_order", ""),
        (files, "sync", ".llava_v1_5_lvis4v_mix888k.json.unfinished"),
        (preparing, "mark_ready", ""),
    ],
)
def test_a_kill_at_any_point_loses_nothing(server, tmp_path, table, monkeypatch, module, step, said):
    server.breaks = {f"/{to}": [20] for to in CONTENT}
    call = getattr(module, step)
    if not (child := os.fork()):
        try:
            monkeypatch.setattr(module, step, lambda *given: os._exit(9) if said in repr(given) else call(*given))
            prepare("lrv-instruct", tmp_path, table)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    content = {to.rpartition("/")[2]: content for to, content in CONTENT.items() if to.endswith(".json")}
    for path in tmp_path.rglob("[a-z]*.json"):
        assert path.read_bytes() == content.get(path.name, path.read_bytes()) and json.loads(path.read_bytes())
    assert state("lrv-instruct", tmp_path, table) == "partly"
    assert prepare("lrv-instruct", tmp_path, table) == 0
    assert state("lrv-instruct", tmp_path, table) == "ready" and len(read(tmp_path, "lrv-instruct", table)) == 16
    assert (tmp_path / LLAVA / "ocr_vqa/images/2.jpg").read_bytes()[-2:] == b"\xff\xd9", "a whole JPEG"
    assert len([1 for path, _ in server.asked if path == f"/{LLAVA}/llava_v1_5_mix665k.json"]) == 2, "broken off once"
    left = [path.name for path in tmp_path.rglob("*") if path.name[0] == "." or path.suffix == ".unfinished"]
    assert left == [".prepare.lock"]


def test_without_a_network_it_lists_what_to_fetch(tmp_path, table, capsys):
    for file in table["data_sets"]["llava-pretrain-558k"]["files"]:
        file["urls"] = ["http://127.0.0.1:9/x"]
    assert prepare("llava-pretrain-558k", tmp_path, table) == 1
    lines = capsys.readouterr().out.splitlines()
    place = tmp_path / ARCHIVES / "llava-pretrain-images.zip"
    assert [line for line in lines if line.startswith("- http://127.0.0.1:9/x: save as ")] == lines[2:4]
    assert str(tmp_path / CAPTIONS / "chat.json") in lines[2] and str(place) in lines[3]
    assert lines[4] == f"Then run prismatic data prepare llava-pretrain-558k --data_root {tmp_path} again."
    (tmp_path / CAPTIONS / "chat.json").write_bytes(CONTENT[f"{CAPTIONS}/chat.json"])
    place.write_bytes(CONTENT[f"{CAPTIONS}/images"])
    assert prepare("llava-pretrain-558k", tmp_path, table) == 0


@pytest.mark.parametrize(
    ("to", "content", "message"),
    [
        ("llava_v1_5_mix665k.json", as_json(ROWS[:8]), r"has 8 rows, expected 9: delete it and run the command again"),
        ("llava_v1_5_mix665k.json", as_json(ROWS + LVIS[:1]), r"has 10 rows, expected 9"),
        ("vg/VG_100K", images("VG_100K", "2.jpg"), r"1 of 8 images of .* are missing, such as .*vg/VG_100K/1.jpg"),
        ("ocr_vqa/images", zipped({"o/1.jpg": b"", "o/2.jpg": b""}), "are missing, such as .*ocr_vqa/images/4.jpg"),
        ("gqa/images", b"<!doctype html>", "neither a zip nor a tar file: delete it and fetch it again"),
    ],
)
def test_what_is_not_as_expected_is_not_ready(server, tmp_path, table, to, content, message):
    server.files[f"/{LLAVA}/{to}"] = content
    with pytest.raises(ValueError, match=message):
        prepare("llava-v1.5-instruct", tmp_path, table)
    assert state("llava-v1.5-instruct", tmp_path, table) == "partly"


@pytest.mark.parametrize(
    ("to", "content", "message"),
    [
        (
            "lvis_instruct4v_220k.json",
            as_json(LVIS[:2]),
            "lvis-instruct4v, of llava-v1.5-instruct and lvis4v, has 11 rows",
        ),
        ("lrv/filter_cap1.json", as_json(VG), "filter_cap1.json has 4 rows, expected 3"),
        ("lrv/filter_cap1.json", b'[{"image_id": "1"', "is not valid JSON"),
        ("lrv/filter_cap1.json", as_json([{"image_id": "1", "question": None}]), "row 0 .*expected image_id, question"),
        ("lrv/filter_cap1.json", as_json({"rows": VG}), "is no list of rows"),
    ],
)
def test_parts_that_are_not_as_expected_are_not_mixed(server, tmp_path, table, to, content, message):
    server.files[f"/{LLAVA}/{to}"] = content
    with pytest.raises(ValueError, match=message):
        prepare("lrv-instruct", tmp_path, table)
    assert not (tmp_path / table["data_sets"]["lrv-instruct"]["annotations"]).exists()


def test_another_file_than_the_first_is_refused(server, tmp_path, table):
    assert prepare("llava-pretrain-558k", tmp_path, table) == 0
    (tmp_path / CAPTIONS / "chat.json").unlink()
    server.files[f"/{CAPTIONS}/chat.json"] = as_json([row("004", "00453/004.jpg"), row("x", "00000/005.jpg")])
    with pytest.raises(ValueError, match="has sha256 .*, expected .* of the first one"):
        prepare("llava-pretrain-558k", tmp_path, table)


def test_web_pages_are_no_archives(server, tmp_path, table, capsys):
    server.types[f"/{LLAVA}/lrv/lrv-vg"] = "text/html"
    assert prepare("lrv-instruct", tmp_path, table) == 1
    said = capsys.readouterr().out
    assert "1 of 14 could not be fetched" in said and "sent a web page, not the file" in said


def test_a_disk_without_room_is_refused_before_anything_is_fetched(server, tmp_path, table, monkeypatch):
    for file in table["data_sets"]["llava-pretrain-558k"]["files"]:
        file["gb"] = 30
    monkeypatch.setattr(known.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, int(119e9)))
    with pytest.raises(ValueError, match=r"2 files are missing, .* 120.0 GB are needed.* has room for 119.0 GB"):
        prepare("llava-pretrain-558k", tmp_path / "not/there/yet", table)
    assert not server.asked and not (tmp_path / "not").exists()


def test_the_table_is_what_the_named_models_train_on():
    from recipes.config.finetune import parse_finetune

    table = read_table()
    for entry in table["data_sets"].values():
        config = parse_finetune(["--model", entry["model"], "--stage", entry["stage"]])
        assert config.data.annotations == f"data/{entry['annotations']}"
    llava, lrv = find("llava-v1.5-instruct", table)["rows"], table["parts"]["lrv"]["rows"]
    assert find("llava-lrv", table)["rows"] == llava + lrv
    with pytest.raises(ValueError, match="did you mean lrv-instruct"):
        find("lrv-instruc", table)


def test_a_folder_of_the_reference_s_layout_is_there(tmp_path):
    captions = read_table()["data_sets"]["llava-pretrain-558k"]["files"]
    (tmp_path / CAPTIONS).mkdir(parents=True)
    (tmp_path / CAPTIONS / "chat.json").write_text("[]")
    assert [is_there(file, tmp_path) for file in captions] == [True, False]
    (tmp_path / CAPTIONS / "00453").mkdir()
    assert [is_there(file, tmp_path) for file in captions] == [True, True]
