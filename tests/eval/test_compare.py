"""Runs compared: on what they have in common, paired, from the command line."""

import json
import subprocess
from pathlib import Path

import forked
import jsonlines
import pytest
from evaluation_folders import guesses, write_evaluation
from scipy import stats

from eval.report.compare import common_records, compare, comparison_table
from eval.report.runs import read_runs
from prismatic.miniature.benchmarks import write_benchmarks

TASKS = ("refcoco", "tallyqa", "vsr")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data") / "root", 12)


def run(*arguments) -> subprocess.CompletedProcess:
    return forked.run(["-m", "eval", "compare", *arguments])


def stored(folder: Path, key: str) -> list[dict]:
    with jsonlines.open(folder / key / "samples.jsonl") as reader:
        return list(reader)


def store(folder: Path, key: str, records: list[dict]) -> None:
    with jsonlines.open(folder / key / "samples.jsonl", "w") as writer:
        writer.write_all(records)
    results = json.loads((folder / "results.json").read_text())
    results["tasks"][key]["examples"] = len(records)
    (folder / "results.json").write_text(json.dumps(results))


def test_command(root, tmp_path):
    worse = write_evaluation(tmp_path / "worse", root, TASKS, guesses(1, 0.3))
    better = write_evaluation(tmp_path / "better", root, TASKS, guesses(2, 0.9))
    done = run(worse, better)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "worse-compared" / "compare.json").read_text())
    assert (tmp_path / "worse-compared" / "report.html").stat().st_size > 10_000
    assert not (worse / "report.html").exists()
    assert [r["name"] for r in found["runs"]] == ["worse", "better"] and found["notes"] == []
    for key in TASKS:
        scores = [[r["score"] for r in stored(folder, key)] for folder in (worse, better)]
        means = [sum(s) / len(s) for s in scores]
        task, pair = found["tasks"][key], found["tasks"][key]["differences"]["better"]["accuracy"]
        assert [task["scores"][n]["accuracy"] for n in ("worse", "better")] == pytest.approx(means, abs=1e-12)
        assert pair["difference"] == pytest.approx(means[1] - means[0], abs=1e-12)
        assert pair["interval"][0] < pair["difference"] < pair["interval"][1]
        images = len({r["image"] for r in stored(worse, key)})
        assert task["images"] == images and pair["p_value"] >= 2 ** (1 - images)
        assert (pair["p_value"] < 0.05) == (pair["interval"][0] > 0)
        z = [found["z_scores"][n][key]["accuracy"]["z_score"] for n in ("worse", "better")]
        assert z == pytest.approx([-1, 1], abs=1e-9)
        assert f"{100 * pair['difference']:+.1f}" in done.stdout and f"{pair['p_value']:.4f}" in done.stdout
    assert found["tasks"]["refcoco"]["differences"]["better"]["accuracy"]["p_value"] < 0.05
    assert set(found["tasks"]["refcoco"]["scores"]["worse"]) >= {"accuracy/RefCOCO", "accuracy/RefCOCO+"}
    for kind in ("aggregated_z_score", "reference_z_score"):
        assert found[kind] == pytest.approx({"worse": -1, "better": 1}, abs=1e-9)
    again = run(worse, better, "--out", tmp_path / "elsewhere")
    assert again.returncode == 0 and (tmp_path / "elsewhere" / "report.html").exists()
    assert json.loads((tmp_path / "elsewhere" / "compare.json").read_text()) == found


def test_three_runs_of_which_two_are_equal(root, tmp_path):
    folders = [write_evaluation(tmp_path / n, root, TASKS, guesses(s, 0.5)) for n, s in (("a", 1), ("b", 1), ("c", 3))]
    store(folders[2], "vsr", stored(folders[0], "vsr"))
    found = compare(read_runs(folders))
    for task in found["tasks"].values():
        same = task["differences"]["b"]["accuracy"]
        assert (same["difference"], same["interval"], same["p_value"]) == (0, [0, 0], 1)
        assert set(task["differences"]) == {"b", "c"}
    values = [found["tasks"]["refcoco"]["scores"][n]["accuracy"] for n in "abc"]
    z = [found["z_scores"][n]["refcoco"]["accuracy"]["z_score"] for n in "abc"]
    assert z == pytest.approx(stats.zscore(values), abs=1e-9)
    assert [found["z_scores"][n]["vsr"]["accuracy"]["z_score"] for n in "abc"] == [None] * 3
    assert "vsr" in comparison_table(found)


def test_different_examples_are_told_and_left_out(root, tmp_path):
    a = write_evaluation(tmp_path / "a", root, TASKS, guesses(1, 0.5))
    b = write_evaluation(tmp_path / "b", root, TASKS[:2], guesses(2, 0.5))
    records = stored(b, "tallyqa")
    records[0]["answer"] = "P" if records[0]["answer"] != "P" else "A"  # other data under the same id
    store(b, "tallyqa", records[::-1][3:])
    found = compare(read_runs([a, b]))
    assert found["tasks"]["tallyqa"]["examples"] == len(records) - 4 and "vsr" not in found["tasks"]
    notes = "\n".join(found["notes"])
    assert f"compared on the {len(records) - 4} in common" in notes and "vsr: b has no results" in notes
    assert f"4 of {len(records)} are not in all runs in a" in notes
    pairs, _ = common_records("tallyqa", read_runs([a, b]))
    assert [r["id"] for r in pairs[0]] == [r["id"] for r in pairs[1]] == [r["id"] for r in records[1:-3]]
    assert notes in comparison_table(found)
    alone = compare(read_runs([b, a]))  # the first has not all tasks
    assert set(alone["tasks"]) == {"refcoco", "tallyqa"}


def test_mean_over_subsets_is_compared_as_such(root, tmp_path):
    """With a task whose main metric is the mean over subsets, of different sizes."""
    folders = [write_evaluation(tmp_path / n, root, ["refcoco"], guesses(s, 0.5)) for n, s in (("a", 1), ("b", 2))]
    for folder in folders:
        records = [r for r in stored(folder, "refcoco") if r["subset"] != "RefCOCO" or r["id"].endswith("1")]
        store(folder, "refcoco", records)
        results = json.loads((folder / "results.json").read_text())
        results["tasks"]["refcoco"]["main"] = "mean_accuracy"
        (folder / "results.json").write_text(json.dumps(results))
    (task,) = compare(read_runs(folders))["tasks"].values()
    means = []
    for folder in folders:
        by_subset: dict = {}
        for r in stored(folder, "refcoco"):
            by_subset.setdefault(r["subset"], []).append(r["score"])
        assert len({len(s) for s in by_subset.values()}) > 1
        means.append(sum(sum(s) / len(s) for s in by_subset.values()) / len(by_subset))
    assert task["main"] == "mean_accuracy"
    assert task["differences"]["b"]["mean_accuracy"]["difference"] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert task["differences"]["b"]["accuracy"]["difference"] != pytest.approx(means[1] - means[0], abs=1e-4)


def test_bad_input(root, tmp_path):
    a = write_evaluation(tmp_path / "a", root, ["vsr"], guesses(1, 0.5))
    b = write_evaluation(tmp_path / "b", root, ["vsr"], guesses(2, 0.5), version=99)
    c = write_evaluation(tmp_path / "c", root, ["tallyqa"], guesses(2, 0.5))
    broken = write_evaluation(tmp_path / "broken", root, ["vsr"], guesses(2, 0.5))
    (broken / "vsr" / "samples.jsonl").write_text('{"id": ')
    short = write_evaluation(tmp_path / "short", root, ["vsr"], guesses(2, 0.5))
    lines = (short / "vsr" / "samples.jsonl").read_text().splitlines(keepends=True)
    (short / "vsr" / "samples.jsonl").write_text("".join(lines[1:]))
    (tmp_path / "no_json").mkdir()
    (tmp_path / "no_json" / "results.json").write_text("[]")
    for runs, told in (
        ([a], "got 1 run: give two"),
        ([a, tmp_path], "has no results.json"),
        ([a, tmp_path / "nowhere"], "has no results.json"),
        ([a, tmp_path / "no_json"], "has no tasks"),
        ([a, b], "version differs between the runs (1 in a, 99 in b)"),
        ([a, c], "no examples in common"),
        ([a, a], "given twice"),
        ([a, broken], "samples.jsonl is damaged"),
        ([a, short], f"has {len(lines) - 1} records, expected {len(lines)}"),
    ):
        with pytest.raises(ValueError) as error:
            compare(read_runs(runs))
        assert told in str(error.value) and "\n" not in str(error.value)
    done = run(a, b)
    assert done.returncode == 2 and done.stderr.startswith("error: vsr") and done.stderr.count("\n") == 1
    assert not (tmp_path / "a-compared").exists()


def test_names_tell_runs_apart(root, tmp_path):
    folders = [tmp_path / "one" / "eval", tmp_path / "two" / "eval"]
    for folder in folders:
        write_evaluation(folder, root, ["vsr"], guesses(1, 0.5))
    assert [r.name for r in read_runs(folders)] == ["one/eval", "two/eval"]
