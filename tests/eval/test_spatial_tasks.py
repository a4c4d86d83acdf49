"""The spatial benchmarks: files as they are distributed, prompts word for word, and scores computed by hand."""

import json
from string import ascii_uppercase

import pytest
from spatial_files import WRITERS

from eval.data.selection import check_images
from eval.fingerprints import job_fingerprint
from eval.runner import Job, read_jobs
from eval.scoring.bootstrap import intervals
from eval.task import Choose
from eval.tasks import get_task

DIRECTLY = "Answer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above. \n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The small files of all benchmarks."""
    root = tmp_path_factory.mktemp("data")
    for write in WRITERS.values():
        write(root)
    return root


def examples_of(key, root):
    task = get_task(key)
    examples = task.read(root, task.split)
    check_images(task, examples, root)
    return task, examples


def answered(task, example, said) -> dict:
    """A judged record of an example: a choice by its letter (with probabilities), or a text."""
    record = json.loads(json.dumps(example.record()))
    kind = task.answer(example)
    if isinstance(kind, Choose):
        at = ascii_uppercase.index(said)
        record |= {"output": kind.options[at], "options": list(kind.options)}
        record |= {
            "probabilities": [0.7 if n == at else 0.3 / (len(kind.options) - 1) for n in range(len(kind.options))]
        }
    else:
        record |= {"output": said}
    return record | task.scorer.judge(record)


def scored(key, root, wrong=(), texts=None):
    """Records and metrics: all answers right but those whose ids are named, or the texts that are given."""
    task, examples = examples_of(key, root)
    records = []
    for number, example in enumerate(examples):
        other = "ABCDEF".replace(example.answer, "")[0]
        said = texts[number] if texts else other if example.id in wrong else example.answer
        records.append(answered(task, example, said))
    metrics = task.scorer.summarise(records)
    assert task.scorer.main in metrics
    return records, metrics


def test_cv_bench_averages_sources_and_then_dimensions(root):
    records, metrics = scored("cv-bench", root, wrong=("0", "3", "5"))
    assert [record["score"] for record in records] == [0, 1, 1, 0, 1, 0]
    by_hand = {
        "accuracy": 3 / 6, "accuracy/2D/ADE20K": 2 / 3, "accuracy/2D/COCO": 0, "accuracy/3D/Omni3D": 1 / 2,
        "mean_accuracy/2D": (2 / 3 + 0) / 2, "mean_accuracy": ((2 / 3 + 0) / 2 + 1 / 2) / 2,
        "accuracy/task/Count": 1 / 2, "accuracy/task/Relation": 1 / 2, "accuracy/task/Depth": 1,
        "accuracy/task/Distance": 0,
    }  # fmt: skip
    assert metrics == pytest.approx(by_hand)
    assert intervals(records, metrics, "mean_accuracy").keys() >= {"mean_accuracy", "accuracy/2D/ADE20K"}
    task, examples = examples_of("cv-bench", root)
    assert task.prompt(examples[1]) == f"Question 1? Select from the following.\n(A) left\n(B) right\n{DIRECTLY}"
    assert [len(task.answer(example).options) for example in examples] == [4, 2, 6, 2, 2, 2]
    llava = get_task("cv-bench+llava")
    assert llava.prompt(examples[1]) == f"Question 1?\nA. left\nB. right\n{DIRECTLY}"
    assert len(examples_of("cv-bench:2D", root)[1]) == 4 and get_task("cv-bench:3D").guessing([]) == 0.5
    said = ["(B)", "The answer is A.", "5", "A. above", "sofa", "I cannot tell"]
    records, metrics = scored("cv-bench+text", root, texts=said)
    assert [record["choice"] for record in records] == ["B", "A", "F", "A", "A", None]
    assert metrics["accuracy"] == 4 / 6 and metrics["parse_failures"] == 1 / 6


@pytest.mark.parametrize("split", ["test", "corrected"])
def test_mmvp_counts_pairs(root, split):
    records, metrics = scored(f"mmvp:{split}", root, wrong=("4",))
    assert metrics == {"accuracy": 3 / 4, "pair_accuracy": 1 / 2}
    assert [record["groups"] for record in records] == [{"pair": "0"}, {"pair": "0"}, {"pair": "1"}, {"pair": "1"}]
    task, examples = examples_of(f"mmvp:{split}", root)
    assert task.prompt(examples[2]) == "Where is it? (a) at the left (b) at the right"
    assert task.answer(examples[2]) == Choose(("at the left", "at the right"))
    assert [example.answer for example in examples] == ["A", "B", "B", "A"]
    texts = ["yes", "It is not open (b).", "At the right.", "right"]
    assert scored(f"mmvp:{split}+text", root, texts=texts)[1]["pair_accuracy"] == 1 / 2


def test_blink_is_a_mean_of_tasks(root):
    """Two questions a task, about one to four images."""
    wrong = ("val_Relative_Depth_1", "val_Spatial_Relation_1", "val_Spatial_Relation_2")
    records, metrics = scored("blink", root, wrong)
    assert metrics["mean_accuracy"] == (1 + 1 + 1 / 2 + 0) / 4 and len(records) == 8
    records, metrics = scored("blink:val", root, wrong)
    assert metrics["mean_accuracy"] == pytest.approx((12 + 1 / 2) / 14)
    assert {len(record.get("more_images", [])) for record in records} == {0, 1, 2, 3}
    assert scored("blink:cambrian", root, wrong)[1]["accuracy"] == 9 / 12
    task, examples = examples_of("blink", root)
    assert task.prompt(examples[0]) == "Which?\nSelect from the following choices.\n(A) one\n(B) the other"


def test_realworldqa_has_letters_and_words(root):
    task, examples = examples_of("realworldqa", root)
    assert [example.info["choices"] for example in examples] == [
        ["left", "right", "ahead"],
        [],
        [],
        ["left", "right", "ahead"],
    ]
    assert [type(task.answer(example)).__name__ for example in examples] == ["Choose", "Generate", "Generate", "Choose"]
    assert task.prompt(examples[1]) == "How many?\nPlease answer with a number."
    records, metrics = scored("realworldqa+text", root, texts=["B.", "3.", "dark red", "The answer is (C)."])
    assert [record["score"] for record in records] == [1, 1, 1, 0] and metrics["accuracy"] == 3 / 4
    assert scored("realworldqa", root, texts=["B", "three", "Dark red", "A"])[1]["accuracy"] == 3 / 4


def test_vstar_shuffles_its_options(root):
    records, metrics = scored("vstar", root, wrong=("direct_attributes/sa_2",))
    assert metrics["accuracy"] == 2 / 3 and metrics["accuracy/direct_attributes"] == 1 / 2
    task, examples = examples_of("vstar", root)
    assert task.prompt(examples[0]) == "What of the cup?"
    firsts = {"direct_attributes/sa_1": "red", "direct_attributes/sa_2": "wood"}
    for example in examples[:2]:
        choices = example.info["choices"]
        assert choices[ascii_uppercase.index(example.answer)] == firsts[example.id] and len(set(choices)) == 4
        assert task.answer(example) == Choose(tuple(choices))
    assert examples == task.read(root, "test"), "in the same order every time"
    assert get_task("vstar+text").prompt(examples[0]) == get_task("vstar+llava").prompt(examples[0])
    listed = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip("ABCD", examples[0].info["choices"], strict=True)
    )
    assert get_task("vstar+llava").prompt(examples[0]) == f"What of the cup?\n{listed}\n{DIRECTLY}"


def test_embspatial_counts_from_zero(root):
    records, metrics = scored("embspatial", root, wrong=("mp3d_3",))
    assert [record["answer"] for record in records] == list("ABCD")
    assert metrics["accuracy"] == 3 / 4 and metrics["accuracy/mp3d"] == 1 / 2
    assert metrics["accuracy/relation/under"] == 0 and metrics["accuracy/relation/left"] == 1


def test_3dsrbench_counts_orders_and_mirrors(root):
    """Of eleven rows' groups one row is wrong: an order of the mirrored picture."""
    records, metrics = scored("3dsrbench", root, wrong=("aaaa1111-flip-1",))
    by_hand = {
        "accuracy": 7 / 8,
        "circular_accuracy": 2 / 3,  # aaaa1111, aaaa1111-flip, bbbb2222
        "flip_accuracy": 5 / 6,  # aaaa1111 and its mirror, the same turned, four orders of bbbb2222
        "flip_circular_accuracy": 1 / 2,
        "circular_accuracy/height": 1 / 2,
        "circular_accuracy/orientation": 1,
        "circular_accuracy/category/height_higher": 1 / 2,
        "circular_accuracy/category/orientation_viewpoint": 1,
        "mean_circular_accuracy": (1 / 2 + 1) / 2,
        "accuracy/category/height_higher": 3 / 4,
    }
    assert {name: metrics[name] for name in by_hand} == pytest.approx(by_hand)
    task, examples = examples_of("3dsrbench", root)
    expected = 'Question: Is it "higher"?\nLook.\nOptions:\nA. no\nB. yes\n' + SELECT
    assert task.prompt(examples[1]) == expected and examples[1].answer == "B"
    assert len({example.image for example in examples}) == 3, "equal pictures are one"
    assert task.scorer.main == "circular_accuracy" and get_task("3dsrbench:flip").guessing([]) == 0.467
    flips = scored("3dsrbench:flip", root, wrong=("aaaa1111-flip",))[1]
    assert flips["flip_accuracy"] == 1 / 2 and flips["accuracy"] == 2 / 3
    assert flips["flip_accuracy/category/height_higher"] == 0
    scorer = get_task("3dsrbench:flip").scorer  # its chance is that of a row
    assert (scorer.main, scorer.about, scorer.groups) == ("accuracy", "likeliest option", ("flip",))


def test_whatsup_counts_pairs_and_sets(root):
    records, metrics = scored("whatsup", root, wrong=("A-mug_under_cap",))
    by_hand = {
        "accuracy": 7 / 8, "accuracy/A": 3 / 4, "mean_accuracy": (3 / 4 + 1) / 2, "pair_accuracy": 3 / 4,
        "pair_accuracy/A": 1 / 2, "set_accuracy": 1 / 2, "set_accuracy/A": 0, "set_accuracy/B": 1,
        "accuracy/relation/under": 0, "accuracy/relation/left": 1, "mean_pair_accuracy": (1 / 2 + 1) / 2,
        "mean_set_accuracy": 1 / 2,
    }  # fmt: skip
    assert {name: metrics[name] for name in by_hand} == by_hand
    more = records + [
        r | {"id": f"{r['id']}2", "groups": {k: f"{v}2" for k, v in r["groups"].items()}} for r in records[4:]
    ]
    metrics = get_task("whatsup").scorer.summarise(more)  # A and B are of different sizes
    assert metrics["set_accuracy"] == 2 / 3 and metrics["mean_set_accuracy"] == 1 / 2
    assert metrics["mean_pair_accuracy"] == 3 / 4 and "mean_pair_accuracy" in intervals(more, metrics, "mean_accuracy")
    task, examples = examples_of("whatsup", root)
    for example in examples:
        right = example.info["choices"][ascii_uppercase.index(example.answer)]
        relation = {"left": "left of", "right": "right of", "in-front": "in-front of"}.get(
            example.info["relation"], example.info["relation"]
        )
        assert right == f"A mug {relation} a cap" and set(task.answer(example).options) == set(example.info["choices"])
    assert len({example.answer for example in examples}) > 1, "letters are shuffled"
    assert get_task("whatsup+llava").prompt(examples[0]).startswith("Which caption describes the image?\nA. A mug ")


def test_spatialeval_reads_options_out_of_reasons(root):
    texts = ["It is Northeast.\nBecause it is up.", "No, there is none.", "There are 10.", "The answer is A. cup"]
    records, metrics = scored("spatialeval", root, texts=texts)
    assert [record["score"] for record in records] == [1, 0, 1, 0] and metrics["accuracy"] == 1 / 2
    assert metrics["mean_accuracy"] == 1 / 2 and metrics["accuracy/kind/0"] == 1 / 2
    texts = [f"It is {said}.\n\n1. Look at 1.\n2. Northeast, Southwest: (B). 10 cups, yes, pan" for said in
             ("Northeast", "No", "10", "a pan")]  # fmt: skip
    assert [record["choice"] for record in scored("spatialeval", root, texts=texts)[0]] == ["A", "B", "B", "B"]
    assert [*get_task("spatialeval").variants] == ["llava"], "the prompt asks for reasons, which take room"
    task, examples = examples_of("spatialeval:vtqa", root)
    assert task.prompt(examples[2]).startswith(
        examples[2].question + " First, provide a concise answer in one sentence."
    )
    assert get_task("spatialeval+llava").prompt(examples[1]) == f"{examples[1].question}\n{DIRECTLY}"


def test_seed_bench_takes_the_spatial_kinds(root):
    records, metrics = scored("seed-bench-spatial", root, wrong=("102",))
    assert [record["id"] for record in records] == ["100", "102", "103"]
    assert metrics["accuracy"] == 2 / 3 and metrics["accuracy/Spatial_Relation"] == 1 / 2
    task, examples = examples_of("seed-bench-spatial", root)
    assert task.prompt(examples[0]) == "Where is thing 0?"
    lettered = f"Where is thing 0?\nA. left\nB. right\nC. front\nD. back\n{DIRECTLY}"
    assert get_task("seed-bench-spatial+text").prompt(examples[0]) == lettered
    assert task.answer(examples[0]) == Choose(("left", "right", "front", "back"))


def test_mmbench_counts_every_order(root):
    records, metrics = scored("mmbench-spatial", root, wrong=("1000243",))
    assert [record["id"] for record in records] == ["241", "1000241", "2000241", "243", "1000243"]
    assert metrics["circular_accuracy"] == 1 / 2 and metrics["accuracy"] == 4 / 5
    assert metrics["circular_accuracy/spatial_relationship"] == 0
    task, examples = examples_of("mmbench-spatial", root)
    options = "Question: Where is it?\nOptions:\nA. down\nB. left\nC. up\n"
    assert task.prompt(examples[1]) == options + SELECT
    assert task.prompt(examples[3]).startswith(
        "Hint: It is seen\tfrom above.\nQuestion: Where is it?\nOptions:\nA. left\n"
    )


def test_variants_are_named_recorded_and_other_tasks(root):
    keys = ["mmvp", "mmvp+llava", "mmvp+text", "mmvp+llava+text", "mmvp:corrected+llava"]
    prints = set()
    for job in read_jobs(keys, root, allow_partial=True):
        prints.add(job_fingerprint(Job(job.key, job.task, job.examples, root), "weights", {}))
    assert len(prints) == len(keys)
    with pytest.raises(ValueError, match="task 'mmvp' has no variant 'lava': did you mean llava"):
        get_task("mmvp+lava")
    with pytest.raises(ValueError, match="task 'gqa' has no variant 'llava': it has none"):
        get_task("gqa+llava")


def test_all_of_them_run(root, tmp_path):
    """Through the recipe, with the bundled model; metrics are those of what is stored."""
    from recipes.config.evaluate import parse_evaluate
    from recipes.evaluate import main

    keys = [*WRITERS, "cv-bench+text", "whatsup+llava", "spatialeval+llava", "realworldqa+text"]
    keys.remove("spatialeval")  # writes 512 tokens a question
    options = [
        "--data_root",
        str(root),
        "--allow_partial",
        "true",
        "--precision",
        "fp32",
        "--out",
        str(tmp_path / "out"),
    ]
    results = main(parse_evaluate(["--model", "miniature", "--tasks", ",".join(keys), *options]))
    for key in keys:
        entry, task = results["tasks"][key], get_task(key)
        lines = (tmp_path / "out" / key / "samples.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert entry["errors"] == 0 and entry["examples"] == len(records) and entry["main"] == task.scorer.main
        assert entry["metrics"]["accuracy"] == pytest.approx(sum(r["score"] for r in records) / len(records))
        for record in records:
            if record.get("probabilities"):
                best = record["probabilities"].index(max(record["probabilities"]))
                assert record["score"] == float(ascii_uppercase[best] == record["answer"])
        for group in task.scorer.groups:
            whole = {}
            for record in records:
                whole[record["info"][group]] = whole.get(record["info"][group], True) and record["score"] == 1
            assert entry["metrics"][f"{group}_accuracy"] == sum(whole.values()) / len(whole)
    assert results["tasks"]["mmvp"]["majority"] is None and results["tasks"]["mmvp"]["chance"] == 1 / 4
