"""What `state.ShardWriter` writes is what torch's own writer writes, and its hashes are those of the files."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from prismatic.training import state


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "odd": torch.randn(3, 5).bfloat16(),
        "number": torch.tensor(7.0),
        "b": torch.randn(1_100_000),  # more than a piece
        "turned": torch.randn(6, 4).T,
        "ids": torch.arange(9).view(3, 3),
        "half": torch.randn(7).half(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "none": torch.zeros(0, 4),
    }


def metadata(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_it_writes_what_torch_writes(tensors, tmp_path):
    writer = state.ShardWriter(tmp_path / "ours")
    dcp.save(tensors, storage_writer=writer, no_dist=True)
    contiguous = {name: value.contiguous() for name, value in tensors.items()}  # torch's refuses others
    theirs = HuggingFaceStorageWriter(str(tmp_path / "theirs"), save_distributed=True)
    dcp.save(contiguous, storage_writer=theirs, no_dist=True)
    (mine,), (other,) = ((tmp_path / name).iterdir() for name in ("ours", "theirs"))
    assert mine.name == other.name and writer.files == {mine.name: state.describe(mine)}
    found, expected = load_file(mine), load_file(other)
    assert found.keys() == expected.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], expected[name]), name
        assert torch.equal(found[name], value), name
    ours, reference = metadata(mine), metadata(other)
    assert ours.keys() == reference.keys()
    assert json.loads(ours.pop("DCP_SHARDING_INFO")) == json.loads(reference.pop("DCP_SHARDING_INFO"))
    assert ours == reference

    target = {name: torch.full_like(value, 1) for name, value in tensors.items()}
    dcp.load(target, storage_reader=HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    assert all(torch.equal(target[name], value) for name, value in tensors.items())
