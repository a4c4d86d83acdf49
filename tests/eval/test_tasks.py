"""Tasks read raw downloads as the reference does, ask what it asks, and say clearly what is wrong with the data."""

import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from golden_cases import ROOT, golden_dir, load_json, requires_golden, requires_samples, samples_dir

from eval.data import check_counts, check_images, load_examples, majority_share, seeded_order, slim_subset
from eval.prepared import read_prepared
from eval.restricted_pickle import load_plain
from eval.task import Example, get_task, list_tasks
from prismatic.models.prompts import chat_template, render_prompt

FAMILIES = {
    "refcoco": "refcoco",
    "ocid-ref": "ocid-ref",
    "tally-qa": "tallyqa",
    "vsr": "vsr",
    "ai2d": "ai2d",
    "vqa-v2": "vqav2",
    "gqa": "gqa",
    "vizwiz": "vizwiz",
    "text-vqa": "textvqa-ocr",
    "pope": "pope",
}
INDEX = golden_dir() / "C_vlmeval" / "index"


def indices() -> list[str]:
    return sorted(p.relative_to(INDEX).as_posix() for p in INDEX.glob("*/expected/datasets/*/metadata*.json"))


def without_id(example: Example):
    """What raw and prepared data agree on; size and the like are in the raw data only."""
    return example.image, example.question, example.answer, example.subset


@requires_golden
@pytest.mark.parametrize("path", indices())
def test_raw_data_gives_the_reference_index(path):
    family, name = path.split("/")[0], path.split("/")[-1]
    task = get_task(FAMILIES[family])
    raw = task.read(INDEX / family / "raw", task.split)
    expected = read_prepared(INDEX / path, family)
    assert len(expected) > 5 or "slim" in name
    if family == "ai2d":  # the reference shuffles in the order in which its disk happened to list the files
        order = [
            f.removesuffix(".json") for f in load_json("C_vlmeval/index/manifest.json")["ai2d"]["listdir_order_used"]
        ]
        raw = sorted(raw, key=lambda e: order.index(Path(e.image).name))
    if "slim" in name:
        raw = slim_subset(raw, int(name.removesuffix(".json").rsplit("-")[-1]))
    assert [without_id(e) for e in raw] == [without_id(e) for e in expected]
    if family != "ai2d":
        assert [e.id for e in raw] == [e.id for e in expected]


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_full_index_keeps_the_reference_order(family):
    """Read back in the raw order, and shuffled again, prepared examples come as their file has them."""
    path = next(
        p for p in (INDEX / family / "expected" / "datasets" / family).glob("metadata*") if "slim" not in p.name
    )
    rows = json.loads(path.read_text()).values()
    questions = [r.get("ref_expression") or r.get("caption") or r["question"] for r in rows]
    assert [e.question for e in seeded_order(read_prepared(path, family))] == questions


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_data_is_read_where_raw_data_is_missing(family, tmp_path):
    shutil.copytree(INDEX / family / "expected" / "datasets", tmp_path / "datasets")
    task = get_task(FAMILIES[family])
    assert len(task.read(tmp_path, task.split)) == len(task.read(INDEX / family / "raw", task.split))


@requires_golden
def test_orders_that_the_manifest_records():
    manifest = load_json("C_vlmeval/index/manifest.json")
    shuffled = seeded_order(get_task("refcoco").read(INDEX / "refcoco" / "raw", "val"))
    assert [e.id for e in shuffled] == ["-".join(map(str, key)) for key in manifest["refcoco"]["order_full"]]
    assert len(shuffled) == len(set(e.id for e in shuffled))
    shuffled = seeded_order(get_task("pope").read(INDEX / "pope" / "raw", "test"))
    assert [e.id for e in shuffled] == ["-".join(map(str, key)) for key in manifest["pope"]["order_full"]]
    sizes = manifest["refcoco"]["image_sizes_wh"]
    for example in get_task("refcoco").read(INDEX / "refcoco" / "raw", "val"):
        assert [example.info["width"], example.info["height"]] == sizes[Path(example.image).name]


@requires_golden
def test_other_splits_hold_what_the_pickles_hold():
    raw = INDEX / "refcoco" / "raw"
    for split in ("testA", "testB", "test"):
        expected = sum(
            len(ref["sentences"])
            for path in (raw / "download" / "refcoco").glob("*/*.as_json.json")
            for ref in json.loads(path.read_text())
            if ref["split"] == split
            and (split != "test" or "refcocog" in str(path))
            and (split == "test" or "refcocog" not in str(path))
        )
        assert len(get_task(f"refcoco:{split}").read(raw, split)) == expected


@requires_golden
def test_prompts_equal_the_reference():
    compared = 0
    for row in load_json("C_vlmeval/prompts.json"):
        if row["family"] not in FAMILIES:
            continue  # captioning
        example = Example("0", "", row["question"], "", info={"choices": row.get("choices")})
        text = get_task(FAMILIES[row["family"]]).prompt(example)
        conversation = [{"from": "human", "value": text}]
        assert render_prompt(conversation, chat_template(row["builder"])) == row["prompt"]
        compared += 1
    assert compared > 200


@requires_golden
@pytest.mark.parametrize("family", FAMILIES)
def test_questions_and_options_equal_the_reference_task_runner(family):
    task, calls = get_task(FAMILIES[family]), load_json(f"C_vlmeval/scoring/{family}/model_calls.json")
    path = next(
        p for p in (INDEX / family / "expected" / "datasets" / family).glob("metadata*") if "slim" not in p.name
    )
    tasks = [task, get_task("textvqa")] if family == "text-vqa" else [task]  # it asks with the hint, then without
    asked = [(t, e) for e in seeded_order(read_prepared(path, family)) for t in tasks]
    assert len(asked) == len(calls)
    for (task, example), call in zip(asked, calls, strict=True):
        prompt = render_prompt([{"from": "human", "value": task.prompt(example)}], chat_template("pure"))
        assert prompt == call["prompt"]
        assert list(getattr(task.answer(example), "options", ())) == (call["return_string_probabilities"] or [])


def lines(path: str) -> int:
    return len((samples_dir() / path).read_text().strip().split("\n"))


def entries(path: str, key: str | None = None) -> int:
    content = json.loads((samples_dir() / path).read_text())
    return len(content[key] if key else content)


def expressions() -> int:
    refs = [ref for path in (samples_dir() / "refcoco").glob("*/refs*.json") for ref in json.loads(path.read_text())]
    return sum(len(ref["sentences"]) for ref in refs if ref["split"] == "val")


def diagram_questions() -> int:
    return sum(
        len(json.loads(p.read_text())["questions"]) for p in (samples_dir() / "ai2d/ai2d/questions").glob("*.json")
    )


SAMPLES = {
    "refcoco": expressions,
    "ocid-ref": lambda: entries("ocidref/val_expressions.json"),
    "tallyqa": lambda: entries("tallyqa/test.json"),
    "ai2d": diagram_questions,
    "vqav2": lambda: entries("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "questions"),
    "gqa": lambda: entries("gqa/questions1.2/testdev_balanced_questions.json"),
    "vizwiz": lambda: entries("vizwiz/Annotations/val.json"),
    "textvqa": lambda: entries("textvqa/TextVQA_0.5.1_val.json", "data"),
    "textvqa-ocr": lambda: lines("textvqa/textvqa_val_v051_ocr.jsonl"),
    "pope": lambda: sum(lines(f"pope/coco_pope_{kind}.json") for kind in ("adversarial", "popular", "random")),
    "vsr": lambda: lines("vsr/test.jsonl"),
}


@requires_samples
@pytest.mark.parametrize("name", SAMPLES)
def test_genuine_samples_are_read(name):
    task = get_task(name)
    examples = task.read(samples_dir(), task.split)
    assert len(examples) == SAMPLES[name]() > 3
    check_counts(task, examples, allow_partial=True)
    with pytest.raises(ValueError, match="official number"):
        check_counts(task, examples)
    assert examples == task.read(samples_dir(), task.split)
    assert all(json.loads(json.dumps(e.info)) == e.info and not e.image.startswith("/") for e in examples)
    if name not in ("pope", "vsr", "gqa"):  # of which the samples have few pictures or none
        check_images(task, examples, samples_dir())
    assert all(task.prompt(e) for e in examples)


@requires_samples
def test_genuine_refcoco_record():
    """The first genuine ref, whose box and image size are known from elsewhere."""
    from eval.tasks.refcoco import read_dataset

    facts = json.loads((samples_dir() / "refcoco" / "real_facts.json").read_text())
    examples = read_dataset(samples_dir(), "RefCOCO", "train", "train2014")
    (x, y, w, h), (width, height) = facts["ann_1719310"]["bbox_xywh"], facts["ann_1719310"]["image_size_wh"]
    first = [e for e in examples if e.id.startswith("RefCOCO-0-")]
    assert [e.question for e in first] == [s["sent"] for s in facts["refcoco_unc_ref_0"]["sentences"]]
    assert first[0].image == "train2014/COCO_train2014_000000581857.jpg"
    assert first[0].answer == pytest.approx([x / width, y / height, (x + w) / width, (y + h) / height], abs=0.00501)


@requires_samples
def test_genuine_rows_in_other_files():
    folder = samples_dir()
    gqa = get_task("gqa").read(folder, "testdev_balanced")
    assert {"02930152", "07333408"} <= {e.id for e in gqa}  # leading zeros
    asked = {json.loads(line)["text"] for line in (folder / "pope/llava15_13b/llava_pope_test.jsonl").open()}
    pope = get_task("pope")
    assert {pope.prompt(e) for e in pope.read(folder, "test")} == asked
    asked = [
        json.loads(line)["text"] for line in (folder / "textvqa/llava15_13b/llava_textvqa_val_v051_ocr.jsonl").open()
    ]
    assert [e.question for e in get_task("textvqa-ocr").read(folder, "val")] == asked[:30]


@requires_samples
def test_ai2d_equals_a_public_flattening():
    """Another project's questions, answers and prompts of the same test set."""
    rows = [json.loads(line) for line in (samples_dir() / "ai2d" / "mova_test_excerpt.jsonl").open()]
    task = get_task("ai2d")
    ours = {e.id: e for e in task.read(samples_dir(), "all") if e.subset == "test"}
    shared = [row for row in rows if row["question_id"] in ours]
    assert len(shared) > 50
    for row in shared:
        example = ours[row["question_id"]]
        assert (task.prompt(example), example.answer) == (row["question"], row["answer"])
        assert example.info["abc_label"] == row["image"].startswith("abc_images/")


@requires_samples
@pytest.mark.parametrize(
    ("name", "split", "sample", "target", "count"),
    [
        ("vsr", "dev", "vsr/dev.jsonl", "vsr/dev.jsonl", 40),
        ("vsr", "test", "vsr/random_split_test.jsonl", "vsr/test.jsonl", 40),
        ("vqav2", "val", "vqav2/allennlp_fixture", "vqa-v2", 3),
    ],
)
def test_further_genuine_samples(name, split, sample, target, count, tmp_path):
    (tmp_path / target).parent.mkdir(exist_ok=True)
    source = samples_dir() / sample
    if source.is_dir():
        (tmp_path / target).mkdir()
        shutil.copy(source / "questions.json", tmp_path / target / "v2_val2014_questions.json")
        shutil.copy(source / "annotations.json", tmp_path / target / "v2_val2014_annotations.json")
    else:
        shutil.copy(source, tmp_path / target)
    assert len(get_task(name).read(tmp_path, split)) >= count


@requires_samples
def test_names_that_archives_give_and_names_that_the_reference_gives(tmp_path):
    """The same examples whichever way the files are called."""
    renamed = {
        "vqav2/v2_OpenEnded_mscoco_val2014_questions.json": "vqa-v2/v2_val2014_questions.json",
        "vqav2/v2_mscoco_val2014_annotations.json": "vqa-v2/v2_val2014_annotations.json",
        "vqav2/val2014": "vqa-v2/images_val2014",
        "ai2d/ai2d": "ai2d/val_qa",
        "ai2d/ai2d_test_ids.csv": "ai2d/ai2d_test_ids.csv",
        "vizwiz/Annotations/val.json": "vizwiz/val.json",
        "vizwiz/val": "vizwiz/val_images",
        "textvqa/TextVQA_0.5.1_val.json": "text-vqa/TextVQA_0.5.1_val.json",
        "textvqa/textvqa_val_v051_ocr.jsonl": "text-vqa/textvqa_val_v051_ocr.jsonl",
        "textvqa/train_images": "text-vqa/train_val_images",
        "ocidref/val_expressions.json": "ocid-ref/val_expressions.json",
        "ocidref/OCID-dataset": "ocid-ref/OCID-dataset/OCID-dataset",
        "gqa/questions1.2/testdev_balanced_questions.json": "gqa/testdev_balanced_questions.json",
        "gqa/images": "gqa/images",
    }
    for source, target in renamed.items():
        place = tmp_path / "download" / target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(samples_dir() / source)
    for name in ("vqav2", "ai2d", "vizwiz", "textvqa", "ocid-ref", "gqa"):
        task = get_task(name)
        ours, theirs = task.read(tmp_path, task.split), task.read(samples_dir(), task.split)
        assert [(e.id, e.question, e.answer, Path(e.image).name) for e in ours] == [
            (e.id, e.question, e.answer, Path(e.image).name) for e in theirs
        ]
        if name != "gqa":
            check_images(task, ours, tmp_path)


def letter_questions(root: Path) -> Path:
    """An AI2D diagram with letters for two words, and two questions about them."""
    from PIL import Image, ImageDraw

    for folder in ("questions", "annotations", "images"):
        (root / "ai2d" / "ai2d" / folder).mkdir(parents=True)
    image = Image.new("RGB", (400, 300), "lightblue")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 60, 160, 180), fill="orange")
    draw.ellipse((240, 60, 360, 180), fill="green")
    draw.text((70, 200), "Sun", fill="black", font_size=24)
    draw.text((270, 200), "Earth", fill="black", font_size=24)
    image.save(root / "ai2d/ai2d/images/7.png")
    text = {
        "T0": {"rectangle": [[65, 200], [125, 230]], "value": "Sun", "replacementText": "A"},
        "T1": {"rectangle": [[340, 230], [265, 200]], "value": "Earth", "replacementText": "B"},
    }
    (root / "ai2d/ai2d/annotations/7.png.json").write_text(json.dumps({"text": text, "arrows": {}}))
    row = {"answerTexts": ["A", "B", "C", "D"], "correctAnswer": 1}
    questions = {
        "Which letter is the planet?": row | {"abcLabel": True, "questionId": "7.png-0"},
        "How many bodies are shown?": row | {"abcLabel": False, "questionId": "7.png-1"},
    }
    (root / "ai2d/ai2d/questions/7.png.json").write_text(json.dumps({"imageName": "7.png", "questions": questions}))
    (root / "ai2d/ai2d/questions/.DS_Store").write_text("stray")
    (root / "ai2d/ai2d_test_ids.csv").write_text("7\n")
    return root


def test_letters_are_painted_over_the_words_they_stand_for(tmp_path):
    import numpy as np
    from PIL import Image

    letter_questions(tmp_path)
    task = get_task("ai2d-abc")
    (example,) = load_examples(task, tmp_path, allow_partial=True)
    assert example.info["letters"] == [["A", [[65, 200], [125, 230]]], ["B", [[340, 230], [265, 200]]]]
    plain = Image.open(tmp_path / example.image)
    before, after = (
        np.asarray(picture).astype(int) for picture in (plain.convert("RGB"), task.image_of(plain, example))
    )
    changed = np.abs(before - after).sum(-1) > 0
    inside = np.zeros_like(changed)
    inside[200:231, 65:126] = inside[200:231, 265:341] = True
    assert not (changed & ~inside).any()  # nothing but the words
    for x1, x2 in ((65, 126), (265, 341)):
        patch = after[200:231, x1:x2]
        assert (patch == 255).all(-1).mean() > 0.6 and (patch < 60).all(-1).sum() > 80  # black on white
    assert get_task("ai2d").image_of is None and len(get_task("ai2d").read(tmp_path, "all")) == 2


def test_no_task_depends_on_the_process(tmp_path):
    """The same ids in the same order under another hash seed."""
    if not INDEX.is_dir():
        pytest.skip("no golden set")
    script = f"""
from pathlib import Path
from eval.task import get_task
for family, name in {FAMILIES!r}.items():
    task = get_task(name)
    print([example.id for example in task.read(Path({str(INDEX)!r}) / family / "raw", task.split)])
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and len(said[0]) > 500


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": Malicious()}], protocol=protocol))
    with pytest.raises(ValueError, match="could run code"):
        load_plain(path)
    assert not Path("touched-by-a-pickle").exists()
    pickle.loads(path.read_bytes())  # it would have
    assert Path("touched-by-a-pickle").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch touched'\ntR.",  # GLOBAL and REDUCE
        b"(S'touch touched'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch touched'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0dtouch touched\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pwhatever\n.",  # PERSID
        b"",
        b"\x80\x02]q\x00(",
        b"not a pickle",
        b"\x80\xff.",
    ],
)
def test_other_bad_pickles_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.p").write_bytes(content)
    with pytest.raises(ValueError, match="no pickle of plain data"):
        load_plain(tmp_path / "refs.p")
    assert not (tmp_path / "touched").exists()


def test_python_2_text_is_decoded(tmp_path):
    (tmp_path / "a.p").write_bytes(b"(dp0\nS'sent'\np1\nS'caf\\xc3\\xa9'\np2\ns.")
    (tmp_path / "b.p").write_bytes(b"(dp0\nS'sent'\np1\nS'caf\\xe9'\np2\ns.")
    assert load_plain(tmp_path / "a.p") == load_plain(tmp_path / "b.p") == {"sent": "café"}


def tally(root: Path, content) -> Path:
    (root / "tallyqa" / "VG_100K").mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "tallyqa" / "test.json").write_text(text)
    return root


def question(id: int, **fields) -> dict:
    row = {
        "question_id": id,
        "question": "How many?",
        "answer": 2,
        "issimple": id % 2 == 0,
        "image": f"VG_100K/{id}.jpg",
    }
    return row | fields


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "test.json is not as expected"),
        ("\x00\x01", "expected a list of questions with question_id"),
        ([question(1, answer=16)], "'16' is not in list"),
        ([{"question": "How many?"}], "no 'answer'"),
        ([1, 2], "prepare tallyqa"),
        ({"a": 1}, "prepare tallyqa"),
        ([], "no examples"),
        ([question(1), question(1)], "'1'"),
        ([question(1)], r"simple: expected 22,991, got 0; complex: expected 15,598, got 1.*--allow_partial"),
    ],
)
def test_bad_data_is_named(content, said, tmp_path):
    task = get_task("tallyqa")
    with pytest.raises(ValueError, match=said):
        load_examples(task, tally(tmp_path, content))


def test_missing_files_are_named(tmp_path):
    for task in list_tasks():
        with pytest.raises(ValueError, match=rf"python -m eval prepare \S+ --data_root {tmp_path}"):
            task.read(tmp_path, task.split)


def test_missing_images_are_listed(tmp_path):
    tally(tmp_path, [question(i) for i in range(30)] + [question(30, image="VG_100K/3.jpg")])
    (tmp_path / "tallyqa" / "VG_100K" / "3.jpg").touch()
    with pytest.raises(ValueError) as error:
        load_examples(get_task("tallyqa"), tmp_path, allow_partial=True)
    lines = str(error.value).split("\n")
    assert "29 of 30 images" in lines[0] and "prepare tallyqa" in lines[0]
    assert [Path(line).name for line in lines[1:-1]] == [f"{i}.jpg" for i in range(11) if i != 3]
    assert "19 more" in lines[-1]


def test_limit_and_slim_are_seeded(tmp_path):
    tally(tmp_path, [question(i) for i in range(3000)])
    for i in range(3000):
        (tmp_path / "tallyqa" / "VG_100K" / f"{i}.jpg").touch()
    task = get_task("tallyqa")
    everything = load_examples(task, tmp_path, allow_partial=True)
    some = load_examples(task, tmp_path, limit=50, allow_partial=True)
    assert some == seeded_order(everything)[:50] and {e.subset for e in some} == {"simple", "complex"}
    slim = load_examples(task, tmp_path, slim=True, allow_partial=True)
    assert len(slim) == 2048 and sum(e.subset == "simple" for e in slim) == 1024
    assert load_examples(task, tmp_path, slim=True, limit=5, allow_partial=True) == slim[:5]
    assert majority_share(everything) == 1.0


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(ValueError, match="did you mean refcoco"):
        get_task("refcco")
    with pytest.raises(ValueError, match="choose of val, testA, testB, test"):
        get_task("refcoco:train")
    assert get_task("refcoco:testA").split == "testA"


PLUGIN = """
from eval.scorers import exact_match
from eval.task import Example, Generate, Task, register

def read(root, split):
    rows = (line.split(",") for line in (root / "colours.csv").read_text().splitlines())
    return [Example(id, f"{id}.png", "What colour is it?", colour) for id, colour in rows]

register(Task("colours", 1, read, lambda e: e.question, lambda e: Generate(8), exact_match(), {"all": {"": 2}}))
"""


def test_a_task_of_ones_own(tmp_path):
    (tmp_path / "my_tasks.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "eval", "list", "--plugins", "my_tasks"]
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""}
    listed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "colours" in listed.stdout and "refcoco" in listed.stdout
    missing = subprocess.run([*command[:-1], "mytask"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.startswith("error: no plugin module 'mytask'")

    script = """
from pathlib import Path
import my_tasks
from eval.data import load_examples
from eval.task import get_task
task = get_task("colours")
records = [vars(e) | {"output": "red"} for e in load_examples(task, Path("."))]
print(task.scorer.summarise([r | task.scorer.judge(r) for r in records]))
"""
    (tmp_path / "colours.csv").write_text("007,red\n008,blue\n")
    for id in ("007", "008"):
        (tmp_path / f"{id}.png").touch()
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "{'accuracy': 0.5}", ran.stderr


def test_list_is_fast_and_light():
    command = [
        sys.executable,
        "-c",
        "import runpy, sys; sys.argv[1:] = ['list']; runpy.run_module('eval', run_name='__main__')"
        "; assert not {'torch', 'transformers', 'sklearn', 'matplotlib', 'numpy'} & set(sys.modules)",
    ]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        times.append(time.perf_counter() - start)
        assert listed.returncode == 0, listed.stderr
    assert min(times) < 0.5
    for name in FAMILIES.values():
        assert f"\n{name} " in listed.stdout
    assert "26,488" in listed.stdout and "IoU >= 0.5" in listed.stdout and "51.5%" in listed.stdout
