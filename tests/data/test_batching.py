import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from datasets import config as datasets_config
from golden_cases import load_json, requires_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from prismatic.data.batching import TrainingExamples, collate_packed, collate_padded, epoch_loaders
from prismatic.data.conversation_dataset import BadImageError, ConversationDataset, RefusedPathError
from prismatic.data.samplers import (
    accumulation_steps,
    micro_batches,
    share_batch,
    shuffle_indices,
    split_modality_indices,
)


def flat(batches):
    return [index for batch in batches for index in batch]


@requires_golden
def test_split_modality_orders_are_the_references():
    cases = load_json("B_prismatic/B4_split_modality_sampler/cases.json")
    assert any("error" not in case for case in cases)
    for case in cases:
        is_multimodal, lengths = zip(*case["modality_lengths"], strict=True)
        size, ranks = case["global_batch_size"], case["num_replicas"]
        indices = split_modality_indices(is_multimodal, lengths, size, ranks, case["seed"], case["epoch"])
        if "error" in case:  # where the reference raises, ours covers every row
            assert set(indices) == set(range(len(lengths))) and len(indices) % size == 0
            continue
        assert indices == case["global_indices"]
        own = [flat(micro_batches(indices, rank, ranks, size, size // ranks)) for rank in range(ranks)]
        assert own == case["ranks"]
        assert len(indices) == case["iterated_len"] * ranks


@requires_golden
def test_trajectory_orders_are_the_references():
    cases = load_json("B_prismatic/B8_training_trajectory/cases.json")
    examples = {row["id"]: row for row in load_json("B_prismatic/B8_training_trajectory/examples.json")}
    for stage, case in cases.items():
        rows = [examples[identity] for identity in case["examples"]]
        is_multimodal = ["image" in row for row in rows]
        words = [sum(len(turn["value"].split()) for turn in row["conversations"]) for row in rows]
        size, device_size, seed = case["global_batch_size"], case["per_device_batch_size"], case["seed"]
        assert accumulation_steps(size, 1, device_size) == case["grad_accumulation_steps"]
        order = []
        for epoch in range(case["epochs"]):
            if stage == "align":
                indices = shuffle_indices(len(rows), size, seed, epoch)
            else:
                indices = split_modality_indices(is_multimodal, words, size, 1, seed, epoch)
            order += flat(micro_batches(indices, 0, 1, size, device_size))
        expected = case["dataset_index_order"]
        if stage == "align":  # the reference leaves the last global batch short; ours is filled up
            assert order[: len(expected)] == expected and len(order) - len(expected) == -len(rows) % size
        else:
            assert order == expected and len(order) == case["actual_optimizer_steps"] * size


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 8), (1, 5)])
def test_shuffle_is_torchs(n, size):
    for epoch in (0, 3):
        # One replica for every place of a global batch: their shares, interleaved, are the whole order.
        samplers = [DistributedSampler(range(n), num_replicas=size, rank=place, seed=7) for place in range(size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        assert shuffle_indices(n, size, 7, epoch) == flat(zip(*samplers, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    modalities=st.lists(st.booleans(), min_size=1, max_size=40),
    share=st.sampled_from([1, 2, 3]),
    accumulation=st.sampled_from([1, 2]),
    seed=st.integers(0, 50),
)
def test_steps_do_not_depend_on_the_number_of_ranks(modalities, share, accumulation, seed):
    lengths = np.random.default_rng(seed).integers(1, 100, len(modalities))
    size = 4 * share * accumulation
    steps_by_ranks = []
    for ranks in (1, 2, 4):
        indices = split_modality_indices(modalities, lengths, size, ranks, seed, epoch=0)
        device_size = size // ranks // accumulation
        plans = [micro_batches(indices, rank, ranks, size, device_size) for rank in range(ranks)]
        count = accumulation_steps(size, ranks, device_size)
        assert count == accumulation
        assert all(len(batch) == device_size for plan in plans for batch in plan)
        steps = [
            sorted(index for plan in plans for index in flat(plan[start : start + count]))
            for start in range(0, len(plans[0]), count)
        ]
        assert steps == [sorted(indices[start : start + size]) for start in range(0, len(indices), size)]
        steps_by_ranks.append(steps)
    assert steps_by_ranks[0] == steps_by_ranks[1] == steps_by_ranks[2]
    assert set(flat(steps)) == set(range(len(modalities)))
    assert all(len({modalities[index] for index in step}) == 1 for step in steps)
    groups = [sum(modalities), len(modalities) - sum(modalities)]
    assert len(flat(steps)) == sum(-(-group // size) * size for group in groups)


def test_epochs_and_seeds_change_the_order():
    orders = [shuffle_indices(50, 10, *choice) for choice in ((0, 0), (0, 1), (5, 0))]
    orders += [split_modality_indices([True] * 50, range(50), 10, 1, *choice) for choice in ((0, 0), (0, 1), (5, 0))]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize(
    ("size", "ranks", "device_size", "remedy"),
    [
        (10, 2, 2, "use 8 or 12,"),
        (3, 2, 4, "use 8,"),
        (8, 1, 0, "per-device batch size is 0"),
        (0, 1, 1, "global batch size is 0"),
        (-4, 1, 2, "global batch size is -4"),
    ],
)
def test_batch_sizes_that_do_not_divide(size, ranks, device_size, remedy):
    with pytest.raises(ValueError, match=remedy):
        micro_batches(range(8), 0, ranks, size, device_size)


def test_other_errors_of_plans():
    with pytest.raises(ValueError, match="7 indices do not fill global batches of 4"):
        micro_batches(range(7), 0, 1, 4, 2)
    with pytest.raises(ValueError, match="use 8 or 12,"):
        split_modality_indices([True], [1], 9, 4, 0, 0)
    with pytest.raises(ValueError, match="0 rows"):
        split_modality_indices([], [], 4, 1, 0, 0)
    with pytest.raises(ValueError, match="0 rows"):
        shuffle_indices(0, 4, 0, 0)


def example(*ids, pixels=None):
    ids = torch.tensor(ids)
    return {"input_ids": ids, "labels": ids * 10, "pixel_values": pixels}


def test_collate_padded():
    first, second = torch.full((1, 3, 2, 2), 1.0), torch.full((2, 3, 2, 2), 2.0)
    batch = collate_padded([example(1, 2, 3, pixels=first), None, example(4), example(5, 6, pixels=second)], 99)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 99, 99], [5, 6, 99]]
    assert batch["labels"].tolist() == [[10, 20, 30], [40, -100, -100], [50, 60, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert torch.equal(batch["pixel_values"], torch.cat([first, second]))
    assert batch["skipped"] == 1
    assert collate_padded([example(4)], 0)["pixel_values"] is None


def test_collate_packed():
    pixels = torch.zeros(1, 3, 2, 2)
    items = [example(1, 2, 3, pixels=pixels), None, None, example(4), example(5, 6)]
    batch = collate_packed(items)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, 20, 30, -100, -100, 60]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)
    assert batch["skipped"] == 2
    assert items[0]["labels"].tolist() == [10, 20, 30]


def test_collating_nothing_but_skipped_items():
    padded, packed = collate_padded([None, None], 0), collate_packed([None])
    for batch in (padded, packed):  # one token that nothing is learned from: every process needs a batch to run
        assert batch["input_ids"].tolist() == [[0]] and batch["labels"].tolist() == [[-100]]
    assert {value.dtype for value in (padded["labels"], packed["labels"], packed["position_ids"])} == {torch.long}
    assert padded["pixel_values"] is packed["pixel_values"] is None
    assert (padded["skipped"], packed["skipped"]) == (2, 1)


def encode(row):
    ids = [1, *(ord(character) for character in row["conversations"][0]["value"])]
    return ids, [-100, *ids[1:]]


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Rows whose texts have 0, 1, 2, ... characters; the third image is missing, the fifth row is text only."""
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for n in range(6):
        rows.append({"id": n, "conversations": [{"from": "human", "value": "x" * n}]})
        if n != 4:
            rows[-1]["image"] = f"{n}.png"
            Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return ConversationDataset(tmp_path / "rows.json", tmp_path)


def test_examples(source):
    examples = TrainingExamples(source, encode, to_tensor)
    assert len(examples) == 6
    assert examples[3]["input_ids"].tolist() == [1, 120, 120, 120]
    assert examples[3]["labels"].tolist() == [-100, 120, 120, 120]
    assert examples[3]["pixel_values"][0, 0].unique().tolist() == [3]
    assert examples[4]["pixel_values"] is None
    with pytest.raises(BadImageError, match=r"row 2 \(id '2'\), image '2.png': missing"):
        examples[2]
    assert TrainingExamples(source, encode, to_tensor, "skip")[2] is None
    with pytest.raises(ValueError, match="'ignore'; expected 'error' or 'skip'"):
        TrainingExamples(source, encode, to_tensor, "ignore")


def test_only_bad_images_are_skipped(source, tmp_path):
    def broken(_):
        raise ValueError("a bug of the transform")

    with pytest.raises(ValueError, match="a bug of the transform"):
        TrainingExamples(source, encode, broken, "skip")[0]
    (tmp_path / "away.json").write_text('[{"id": 0, "image": "../a", "conversations": [{"from": "gpt", "value": ""}]}]')
    away = ConversationDataset(tmp_path / "away.json", tmp_path)
    with pytest.raises(RefusedPathError):
        TrainingExamples(away, encode, to_tensor, "skip")[0]


def test_batches_from_worker_processes(source):
    examples = TrainingExamples(source, encode, to_tensor, "skip")
    assert pickle.loads(pickle.dumps(examples))[3]["input_ids"].tolist() == examples[3]["input_ids"].tolist()
    plan = micro_batches(split_modality_indices(source.is_multimodal, source.word_counts, 3, 1, 0, 0), 0, 1, 3, 3)
    loader = DataLoader(
        examples,
        batch_sampler=plan,
        collate_fn=collate_packed,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    batches = list(loader)
    assert len(batches) == len(plan) == 3
    for indices, batch in zip(plan, batches, strict=True):
        kept = [index for index in indices if index != 2]
        assert batch["skipped"] == len(indices) - len(kept)
        assert batch["input_ids"].shape == (1, sum(index + 1 for index in kept))
        images = [index for index in kept if index != 4]
        if images:
            assert batch["pixel_values"][:, 0, 0, 0].tolist() == images
        else:
            assert batch["pixel_values"] is None


@pytest.mark.parametrize(
    ("batch", "world", "at_most", "expected"),
    [
        (12, 1, 5, (4, 3)),
        (12, 2, 5, (3, 2)),
        (7, 1, 6, (1, 7)),
        (8, 8, 128, (1, 1)),
        (8, 1, 1, (1, 8)),
        (8, 1, 8, (8, 1)),
    ],
)
def test_the_largest_micro_batch_that_divides_the_share(batch, world, at_most, expected):
    assert share_batch(batch, world, at_most) == expected
    assert all(type(number) is int for number in share_batch(batch, world, at_most))


@pytest.mark.parametrize("done", [0, 1, 2, 3, 5, 6])
def test_a_run_that_continues_leaves_out_what_is_done(done):
    plan = {0: [[0], [1]], 1: [[2], [3]], 2: [[0], [3]]}.__getitem__
    loaders = epoch_loaders(lambda epoch: range(epoch * 10, epoch * 10 + 4), list, plan, 3, 0, seed=0, done=done)
    left = [(epoch, batch) for epoch, loader in loaders for batch in loader]
    assert left == [(0, [0]), (0, [1]), (1, [12]), (1, [13]), (2, [20]), (2, [23])][done:]


def test_cut_rows_are_counted():
    for collate in (collate_packed, lambda items: collate_padded(items, 0)):
        batch = collate([example(1) | {"cut": cut} for cut in (0, 1, 5)] + [None, example(2)])
        assert (batch["cut_rows"], batch["cut_tokens"]) == (2, 6)
