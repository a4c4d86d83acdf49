"""Tasks read genuine samples of every data set."""

import json
import shutil
from pathlib import Path

import pytest
from golden_cases import requires_samples, samples_dir

from eval.data.selection import check_counts, check_images
from eval.tasks import get_task


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
