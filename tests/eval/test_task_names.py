"""Names of tasks with variants, and what is guessed, lacking or downloaded of tasks."""

from pathlib import PurePosixPath

import pytest
import test_points_and_counts
from huggingface_hub.utils import filter_repo_objects
from spatial_files import WRITERS, base64_of, mmbench, write_tsv

from eval.data.selection import check_counts, load_examples
from eval.prepare import needs, verify
from eval.runner import read_jobs
from eval.task import Choose, Generate
from eval.tasks import get_task

ALL = WRITERS | test_points_and_counts.WRITERS


def test_variants_mean_the_same_in_any_order(tmp_path):
    for name in ("mmvp", "vstar", "whatsup", "3dsrbench"):
        WRITERS[name](tmp_path)
        example, *_ = get_task(name).read(tmp_path, get_task(name).split)
        tasks = [get_task(f"{name}+{variants}") for variants in ("llava+text", "text+llava")]
        assert [task.answer(example) for task in tasks] == [Generate(64)] * 2
        assert len({task.prompt(example) for task in tasks}) == 1
        assert tasks[0].prompt(example).startswith(f"{example.question}\nA. ")
        assert isinstance(get_task(f"{name}+llava").answer(example), Choose)
    with pytest.raises(ValueError, match=r"'mmvp\+text\+text' names a variant more than once"):
        get_task("mmvp+text+text")


@pytest.mark.parametrize("keys", [("mmvp+text+llava", "mmvp+llava+text"), ("mmvp", "mmvp:test"), ("vstar", "vstar")])
def test_the_same_task_is_evaluated_once(keys, tmp_path):
    with pytest.raises(ValueError, match="tasks named more than once: ") as told:
        read_jobs(["blink", *keys], tmp_path)
    assert all(key in str(told.value) for key in keys) and "blink" not in str(told.value)


@pytest.mark.parametrize(
    ("key", "chance"),
    [
        # Of 4, 2 and 6 options (ADE20K), 2 (COCO), and twice 2 (Omni3D): means of sources, then of both.
        ("cv-bench", (((1 / 4 + 1 / 2 + 1 / 6) / 3 + 1 / 2) / 2 + 1 / 2) / 2),
        ("cv-bench:2D", ((1 / 4 + 1 / 2 + 1 / 6) / 3 + 1 / 2) / 2),
        ("cv-bench:3D", 1 / 2),
        ("blink", 1 / 2),
        ("blink:cambrian", 1 / 2),
        ("mmbench-spatial", ((1 / 3) ** 3 + (1 / 2) ** 2) / 2),  # all orders of three and of two options
        ("3dsrbench", 0.217),
        ("3dsrbench:flip", 0.467),
        ("refspatial", 100 / 800),
        ("refspatial:unseen", 100 / 800),
        ("where2place", (100 / 800) * (255 + 204 + 255) / 255 / 3),  # one mask is four fifths white
        ("mmvp", 1 / 4),
    ],
)
def test_chance_is_that_of_the_main_metric(key, chance, tmp_path):
    ALL[key.partition(":")[0]](tmp_path)
    task = get_task(key)
    assert task.guessing(task.read(tmp_path, task.split)) == pytest.approx(chance, abs=2e-3)


def test_mmbench_is_complete_or_partial(tmp_path):
    """The rows of all categories are counted, and every order of each question's options."""
    mmbench(tmp_path)
    with pytest.raises(ValueError, match="MMBench_DEV_EN.tsv: expected 4,329 rows of 1,164 questions, got 7 of 3"):
        load_examples(get_task("mmbench-spatial"), tmp_path)
    assert len(load_examples(get_task("mmbench-spatial"), tmp_path, allow_partial=True)) == 5
    assert verify("mmbench-spatial", tmp_path) == 1
    file = tmp_path / "mmbench/MMBench_DEV_EN.tsv"
    v11 = file.with_name("MMBench_DEV_EN_V11.tsv")
    v11.write_bytes(file.read_bytes())
    assert len(load_examples(get_task("mmbench-spatial:dev-v11"), tmp_path)) == 5, "its sizes are not published"
    lines = v11.read_text().splitlines(keepends=True)
    v11.write_text("".join(line for line in lines if not line.startswith("1000241")))
    with pytest.raises(ValueError, match="1 questions lack orders of their options, such as 241"):
        load_examples(get_task("mmbench-spatial:dev-v11"), tmp_path)


def test_the_official_mmbench_is_accepted(tmp_path):
    """A table of its size: 1,164 questions, of which 837 have four options and 327 three."""
    write_tsv(
        tmp_path / "mmbench/MMBench_DEV_EN.tsv",
        [
            {"index": turn * 1_000_000 + n, "question": "Q?", "hint": ""}
            | dict(zip("ABCD", ["up", "down", "left", "right"][:options] + [""] * 4, strict=False))
            | {"answer": "A", "category": "object_localization", "image": "0" if n + turn else base64_of(0)}
            for n in range(1164)
            for options in [4 if n < 837 else 3]
            for turn in range(options)
        ],
    )
    task = get_task("mmbench-spatial")
    assert len(load_examples(task, tmp_path)) == 4329
    check_counts(task, task.read(tmp_path, "dev"), root=tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_what_is_read_is_downloaded(name, tmp_path):
    """Every file that a split lies in comes with one of the task's downloads."""
    ALL[name](tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        file = path.relative_to(tmp_path)
        assert any(_brings(entry, file) for entry in needs(name)), file


def _brings(entry, file: PurePosixPath) -> bool:
    if not file.is_relative_to(entry["to"]):
        return False
    below = file.relative_to(entry["to"]).as_posix()
    return "hub" not in entry or bool([*filter_repo_objects([below], allow_patterns=entry["files"])])
