"""Mixtures have exactly the rows that were asked for, the same on any number of processes."""

import json
import pickle
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import config as datasets_config
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import picture
from source_files import CONTAINERS, LAYOUTS, conversation, members_of, pictures, raw, write_shards

from prismatic.data.batching import TrainingExamples, collate_padded, epoch_loaders
from prismatic.data.fingerprints import check_same, of_conversations
from prismatic.data.mixture import Part, open_sources, parse_part, rows_of
from prismatic.data.rows import FinetuneBatches
from prismatic.data.sources import open_source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def three(tmp_path):
    """A folder of compressed parquet, tar shards, and a json with 5 text-only rows: 8, 8 and 5 rows."""
    rows = [{"id": f"t{row}", "conversations": conversation(100 + row)} for row in range(5)]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    return (
        CONTAINERS["snappy"](LAYOUTS["llava"](), tmp_path / "parquet"),
        write_shards(tmp_path / "tars", lambda row: members_of(row, pictures()[row], "x")),
        str(tmp_path / "text.json"),
    )  # fmt: skip


def ids(source):
    return [source[row]["id"] for row in range(len(source))]


def test_all_rows_of_all_sources(three):
    mixture = open_sources(three)
    assert ids(mixture) == [f"r{n}" for n in range(8)] + [f"x{n}" for n in range(8)] + [f"t{n}" for n in range(5)]
    sources = [open_source(location) for location in three]
    rows = [(source, row) for source in sources for row in range(len(source))]
    assert mixture.image_counts.tolist() == [source.image_counts[row] for source, row in rows]
    assert mixture.word_counts.tolist() == [source.word_counts[row] for source, row in rows]
    for number, (source, row) in enumerate(rows):
        assert mixture[number] == source[row] and mixture.where(number) == source.where(row)
        found = [np.asarray(image).tolist() for image in mixture.load_images(number)]
        assert found == [np.asarray(image).tolist() for image in source.load_images(row)]
    mixture.check_rows()
    mixture.check_images()
    assert ids(pickle.loads(pickle.dumps(mixture))) == ids(mixture)
    with pytest.raises(IndexError):
        mixture[21]


def test_one_source_alone_is_itself(three):
    assert ids(open_sources(three[:1])) == [f"r{n}" for n in range(8)]
    assert type(open_sources(three[:1])) is type(open_source(three[0]))


def test_numbers_of_rows(three):
    mixture = open_sources([f"{three[0]}@19", f"{three[1]}@3", three[2]], seed=4)
    found = Counter(ids(mixture))
    assert len(mixture) == 19 + 3 + 5
    assert sorted(found[f"r{n}"] for n in range(8)) == [2] * 5 + [3] * 3  # two passes, and three rows once more
    assert sorted(found[f"x{n}"] for n in range(8)) == [0] * 5 + [1] * 3
    assert all(found[f"t{n}"] == 1 for n in range(5))
    assert ids(open_sources([f"{three[0]}@19", f"{three[1]}@3", three[2]], seed=4)) == ids(mixture)
    drawn = {tuple(ids(open_sources([f"{three[1]}@3"], seed=seed))) for seed in range(20)}
    assert len(drawn) > 5 and {one for some in drawn for one in some} == {f"x{n}" for n in range(8)}


def test_shares(three):
    """3 parts of 8 rows, 2 of 8 and 5 of 5: the five rows are half of ten."""
    mixture = open_sources([f"{three[0]}@0.3", f"{three[1]}@0.2", f"{three[2]}@0.5"])
    assert Counter(name[0] for name in ids(mixture)) == {"r": 3, "x": 2, "t": 5}
    assert max(Counter(ids(mixture)).values()) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 1000)), min_size=1, max_size=5))
def test_shares_take_the_most_rows_that_repeat_none(given_):
    """Of all epochs of T rows, T a real number, the largest in which no source runs out, counted down to whole rows."""
    total = sum(weight for _, weight in given_)
    parts = [Part(f"{n}", share=Fraction(weight, total)) for n, (_, weight) in enumerate(given_)]
    lengths = [length for length, _ in given_]
    try:
        rows = rows_of(parts, lengths)
    except ValueError as error:
        assert "less than one" in str(error)
        return
    assert all(1 <= taken <= length for taken, length in zip(rows, lengths, strict=True))
    whole = [number for number, (taken, length) in enumerate(zip(rows, lengths, strict=True)) if taken == length]
    assert whole  # one source is used up, and the others have their shares of what that makes
    epoch = min(Fraction(length) / part.share for part, length in zip(parts, lengths, strict=True))
    assert all(0 <= epoch * part.share - taken < 1 for part, taken in zip(parts, rows, strict=True))


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        (("@0.5", "@0.3", "@0.1"), "0.5 + 0.3 + 0.1 add up to 0.9; expected 1"),
        (("@0.5", "@0.5", ""), "text.json has no share"),
        (("@0.5", "@0.5", "@100"), "text.json has no share"),
        (("@0.9998", "@0.0001", "@0.0001"), "less than one of 8 rows"),
        (("@0.0", "@0.5", "@0.5"), "expected LOCATION, LOCATION@0.3"),
        (("@0", "", ""), "expected LOCATION, LOCATION@0.3"),
        (("@half", "", ""), "expected LOCATION, LOCATION@0.3"),
        (("@-1", "", ""), "expected LOCATION, LOCATION@0.3"),
    ],
)
def test_amounts_that_make_no_sense(three, amounts, message):
    with pytest.raises(ValueError) as error:
        open_sources([location + amount for location, amount in zip(three, amounts, strict=True)])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_amounts_as_written():
    assert parse_part("a/b.json") == Part("a/b.json")
    assert parse_part("a@b/c@0.25") == Part("a@b/c", share=Fraction(1, 4))
    assert parse_part("hf:a/b:train@.5") == Part("hf:a/b:train", share=Fraction(1, 2))
    assert parse_part("a.json@20000") == Part("a.json", rows=20000)
    thirds = [Part(name, share=Fraction("0.333333")) for name in "abc"]
    assert rows_of([thirds[0], thirds[1], Part("c", share=Fraction("0.333334"))], [9, 9, 9]) == [8, 8, 9]
    assert rows_of(thirds, [9, 9, 9]) == [9, 9, 9]  # nearly 1 is enough


def test_a_source_of_one_share(three):
    with pytest.raises(ValueError, match="is all there is"):
        open_sources([f"{three[0]}@1.0"])


def batches(source, rank, world, sampler):
    data = SimpleNamespace(sampler=sampler, workers=0, packing=False, on_bad_image="error")
    config = SimpleNamespace(data=data, global_batch_size=8, per_device_batch_size=2, seed=3, epochs=2, max_steps=None)
    return FinetuneBatches(config, source, None, rank, world)


@pytest.mark.parametrize("sampler", ["shuffle", "split-modality"])
def test_several_processes_take_the_steps_of_one(sampler, three):
    """Each opens the mixture for itself."""
    amounts = [f"{three[0]}@11", f"{three[1]}@5", three[2]]

    def steps(world):
        plans = [batches(open_sources(amounts, seed=3), rank, world, sampler).plan(1) for rank in range(world)]
        each = 8 // world // 2
        found = []
        for step in range(len(plans[0]) // each):
            rows = [row for plan in plans for batch in plan[step * each : (step + 1) * each] for row in batch]
            found.append(sorted(rows))
        return found

    assert steps(1) == steps(2) == steps(4)
    assert {row for step in steps(1) for row in step} == set(range(21))


def first_pixels(image):
    return torch.from_numpy(np.asarray(image).astype(np.int64)).permute(2, 0, 1)


def encode(row):
    text = " ".join(turn["value"] for turn in row["conversations"]).encode()
    return list(text), list(text)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_what_none_give(method, three):
    mixture = open_sources([f"{three[0]}@9", three[1], three[2]], seed=1)
    examples = TrainingExamples(mixture, encode, first_pixels)
    plan = [list(range(start, min(start + 4, len(mixture)))) for start in range(0, len(mixture), 4)]

    def run(workers):
        torch.multiprocessing.set_start_method(method, force=True)
        try:
            loaders = epoch_loaders(lambda epoch: examples, pad, lambda epoch: plan, 1, workers, seed=0)
            return [batch for _, loader in loaders for batch in loader]
        finally:
            torch.multiprocessing.set_start_method("fork", force=True)

    for one, two in zip(run(0), run(2), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name], name


def pad(items):
    return collate_padded(items, pad_token_id=0)


class Tokenizer:
    special_tokens_map = {}
    chat_template = "{{ messages }}"

    def get_vocab(self):
        return {"a": 0}


def test_a_source_that_has_changed_is_named(three, tmp_path):
    before = of_conversations(open_sources(three), Tokenizer())
    check_same(before, json.loads(json.dumps(of_conversations(open_sources(three), Tokenizer()))), "runs/r")
    rows = [{"id": f"t{row}", "conversations": conversation(200 + row)} for row in range(5)]
    (tmp_path / "text.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"other annotations of .*text\.json now") as error:
        check_same(before, of_conversations(open_sources(three), Tokenizer()), "runs/r")
    assert "tars" not in str(error.value) and "images" not in str(error.value)


def test_a_mixture_of_other_amounts_is_another(three):
    before = of_conversations(open_sources([*three[:2], f"{three[2]}@4"]), Tokenizer())
    now = of_conversations(open_sources([f"{three[0]}@7", *three[1:]]), Tokenizer())
    assert before["rows"] == now["rows"]
    with pytest.raises(ValueError, match="other annotations now"):
        check_same(before, now, "runs/r")


def test_pixels_that_have_changed(tmp_path):
    def fingerprint(grey):
        values = {"image": [picture(grey)] * 3, "conversations": [conversation(row) for row in range(3)]}
        return of_conversations(open_source(raw(tmp_path / str(grey), values)), Tokenizer())

    with pytest.raises(ValueError, match="other images now"):
        check_same(fingerprint(1), fingerprint(2), "runs/r")
