import numpy as np
import pytest
import torch
from golden_cases import golden_dir, load_json, load_tensors, requires_golden

from vision_backbones.maskembed.mask_samplers import sample_masks

A2 = "A_locality_alignment/A2_masks"
RENAMED = {"antithetical_sampling": "antithetical", "include_null": "null"}


def arguments(case: dict) -> tuple[int, dict]:
    kwargs = {RENAMED.get(name, name): value for name, value in case["ctor_kwargs"].items()}
    patches = kwargs.pop("mask_size")
    for name in ("mask_ratio", "target_ratio"):  # what the reference calls mask ratio is kept
        if name in kwargs:
            kwargs["keep_ratio"] = kwargs.pop(name)
    if case["sampler"] == "blockwise":
        kwargs.setdefault("keep_ratio", 0.4)
    return patches, {"sampler": case["sampler"], **kwargs}


@requires_golden
def test_masks_match_the_reference():
    masks = load_tensors(f"{A2}/masks.safetensors") if golden_dir().is_dir() else {}
    refused = 0
    for case in load_json(f"{A2}/cases.json"):
        patches, kwargs = arguments(case)
        rng = np.random.default_rng(case["call_seed"])
        if "error" in case:
            refused += 1
            with pytest.raises(ValueError):
                sample_masks(rng, case["batch_size"], patches, as_reference=True, **kwargs)
            continue
        got = sample_masks(rng, case["batch_size"], patches, as_reference=True, **kwargs)
        assert torch.equal(got.to(torch.uint8), masks[case["key"]]), case["key"]
        assert got.float().mean().item() == pytest.approx(case["mean"], abs=1e-6)
    assert refused < len(masks)


@pytest.mark.parametrize("sampler", ["uniform", "bernoulli", "blockwise"])
@pytest.mark.parametrize("antithetical", [True, False])
@pytest.mark.parametrize("null", [True, False])
def test_complements_and_null_rows(sampler, antithetical, null):
    kwargs = {"sampler": sampler, "keep_ratio": 0.4, "antithetical": antithetical, "null": null}
    masks = sample_masks(np.random.default_rng(3), 5, 196, **kwargs)
    rows = 1 + antithetical + null
    assert masks.dtype == torch.bool and masks.shape == (5 * rows, 196)
    grouped = masks.view(5, rows, 196)
    assert not grouped[:, 0].all() and grouped[:, 0].any()
    if antithetical:
        assert torch.equal(grouped[:, 1], ~grouped[:, 0])
    if null:
        assert grouped[:, -1].all()
    assert torch.equal(masks, sample_masks(np.random.default_rng(3), 5, 196, **kwargs))


def test_the_share_of_kept_patches():
    rng, alone = np.random.default_rng(0), {"antithetical": False, "null": False}
    uniform = sample_masks(rng, 4000, 64, sampler="uniform", **alone).float().mean(1)
    deciles = torch.histc(uniform, 10, 0, 1) / 4000  # a uniform keep rate: as many masks in every tenth
    assert deciles.sub(0.1).abs().max() < 0.03
    assert sample_masks(rng, 500, 64, sampler="bernoulli", keep_ratio=0.3, **alone).float().mean() == pytest.approx(
        0.3, abs=0.01
    )
    blocks = sample_masks(rng, 200, 196, sampler="blockwise", keep_ratio=0.4, **alone).float().mean(1)
    assert blocks.min() >= 0.4 and blocks.max() < 0.8


def test_what_cannot_be_sampled():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="did you mean blockwise"):
        sample_masks(rng, 1, 196, sampler="block-wise")
    with pytest.raises(ValueError, match="square"):
        sample_masks(rng, 1, 50, sampler="blockwise")
    with pytest.raises(ValueError, match="raise keep_ratio above 0.47"):
        sample_masks(rng, 1, 36, sampler="blockwise", keep_ratio=0.4)
