import dataclasses
import struct

import pytest
import torch
from safetensors.torch import save_file

from vision_backbones import BackboneSpec, create_backbone, get_spec
from vision_backbones.vit import build_vit
from vision_backbones.weights import ASSETS, read_header

SPEC = BackboneSpec(
    "small",
    arch="vit_tiny_patch16_224",
    image_size=32,
    arch_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4},
    weights="small",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder where weights are looked for, with nothing in it."""
    monkeypatch.setenv("VISION_BACKBONES_WEIGHTS", str(tmp_path))
    return tmp_path


def weights_of(spec: BackboneSpec) -> dict:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in build_vit(spec).state_dict().items()}


@pytest.mark.parametrize("fields", [{}, {"aligned": True, "soft_cap": 30.0}, {"arch": "vit_base_patch16_siglip_224"}])
def test_weights_are_loaded(folder, fields):
    spec = dataclasses.replace(SPEC, **fields)
    weights = weights_of(spec)
    save_file(weights, folder / "small.safetensors")
    for tail_blocks in (0, 2):
        backbone = create_backbone(spec, tail_blocks=tail_blocks)
        for name, value in backbone.vit.state_dict().items():
            assert torch.equal(value, weights[name]), name
        if tail_blocks:
            blocks, norm = backbone.pop_tail()
            assert torch.equal(blocks[1].mlp.fc2.weight, weights["blocks.2.mlp.fc2.weight"])
            assert torch.equal(norm.weight, weights["norm.weight"])


def test_heads_may_be_absent_or_present(folder):
    weights = weights_of(dataclasses.replace(SPEC, arch="vit_base_patch16_siglip_224"))
    spec = dataclasses.replace(SPEC, arch="vit_base_patch16_siglip_224")
    headless = {name: value for name, value in weights.items() if not name.startswith("attn_pool.")}
    for variant in (headless, weights | {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}):
        save_file(variant, folder / "small.safetensors")
        assert torch.equal(create_backbone(spec).vit.pos_embed, weights["pos_embed"])


def test_a_path_is_taken_as_it_is(tmp_path):
    save_file(weights_of(SPEC), tmp_path / "elsewhere.safetensors")
    create_backbone(dataclasses.replace(SPEC, weights=str(tmp_path / "elsewhere.safetensors")))


def test_position_embeddings_are_interpolated(folder):
    weights = weights_of(SPEC)
    smooth = torch.linspace(0, 1, 16)[None, :, None].expand(1, 16, 24)
    weights["pos_embed"] = torch.cat([torch.full((1, 1, 24), 7.0), smooth], dim=1)
    save_file(weights, folder / "small.safetensors")
    resized = create_backbone(SPEC, image_size=64).vit.pos_embed.detach()
    assert resized.shape == (1, 65, 24)
    assert (resized[:, 0] == 7).all()  # the class token keeps its own
    rows = resized[0, 1:, 0].view(8, 8)
    assert (rows.diff(dim=0) > 0).all() and rows.mean() == pytest.approx(0.5, abs=1e-4)


def test_missing_files_say_where_and_how(folder, monkeypatch):
    with pytest.raises(ValueError) as error:
        create_backbone("in1k-vit-l-aligned")
    message = str(error.value)
    assert f"{folder}/in1k-vit-l-maskembed.safetensors" in message
    for hint in ("recipes/align.py", "VISION_BACKBONES_WEIGHTS", "pretrained=False"):
        assert hint in message
    with pytest.raises(ValueError, match="mine.safetensors; write it there as safetensors with timm's"):
        create_backbone(dataclasses.replace(SPEC, weights="mine"))
    with pytest.raises(ValueError, match="no weights file /nowhere/x.safetensors"):
        create_backbone(dataclasses.replace(SPEC, weights="/nowhere/x.safetensors"))
    monkeypatch.delenv("VISION_BACKBONES_WEIGHTS")
    with pytest.raises(ValueError, match=".cache/vision_backbones/moco-vit-b.safetensors"):
        create_backbone("moco-vit-b")


def test_missing_part_of_a_fused_backbone_shows_first(folder):
    save_file(weights_of(SPEC), folder / "small.safetensors")
    fused = BackboneSpec("fused", parts=(SPEC, dataclasses.replace(SPEC, id="b", weights="gone")), image_size=32)
    with pytest.raises(ValueError, match="backbone 'b': no weights file .*gone.safetensors"):
        create_backbone(fused)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("norm.weight"), r"1 are missing.*norm.weight: file has none, model \[24\]"),
        (lambda w: w.update(extra=torch.zeros(2)), r"1 are unexpected.*extra: file \[2\], model has none"),
        (lambda w: w.update({"norm.bias": torch.zeros(3)}), r"norm.bias: file \[3\], model \[24\]"),
        (lambda w: w.update(pos_embed=torch.zeros(1, 17, 5)), r"pos_embed: file \[1, 17, 5\], model \[1, 17, 24\]"),
        (lambda w: w.update(pos_embed=torch.zeros(1, 26, 5)), r"pos_embed: file \[1, 26, 5\], model \[1, 17, 24\]"),
        (lambda w: w.update(pos_embed=torch.zeros(1, 16, 24)), r"pos_embed: file \[1, 16, 24\], model"),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.zeros(24, 3, 7, 7)}),
            r"1 of the model's 42 .*patch_embed.proj.weight: file \[24, 3, 7, 7\], model \[24, 3, 8, 8\]",
        ),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.")], r"; and 31 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, expected):
    weights = weights_of(SPEC)
    change(weights)
    save_file(weights, folder / "small.safetensors")
    with pytest.raises(ValueError, match=expected):
        create_backbone(SPEC)


def test_other_files_are_refused(folder):
    (folder / "small.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        create_backbone(SPEC)


def test_unreachable_hub_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError) as error:
        create_backbone("timm:test_vit.r160_in1k")
    for hint in ("test_vit.r160_in1k", "HF_HOME", "pretrained=False"):
        assert hint in str(error.value)


def test_weights_of_timm_are_loaded_interpolated_and_cut(tmp_path):
    """As from the hub, with a local file in the place of the download."""
    weights = weights_of(SPEC)
    save_file(weights, tmp_path / "model.safetensors")
    local = {"file": str(tmp_path / "model.safetensors"), "num_classes": 0}
    spec = dataclasses.replace(SPEC, weights=None, arch_kwargs={**SPEC.arch_kwargs, "pretrained_cfg_overlay": local})
    for name, value in create_backbone(spec).vit.state_dict().items():
        assert torch.equal(value, weights[name]), name
    larger = create_backbone(spec, image_size=64).vit
    assert larger.pos_embed.shape == (1, 65, 24)
    assert torch.equal(larger.pos_embed[:, 0], weights["pos_embed"][:, 0])
    misfit = dataclasses.replace(spec, arch_kwargs={**spec.arch_kwargs, "embed_dim": 32})
    with pytest.raises(ValueError, match="timm could not load weights for vit_tiny_patch16_224 .RuntimeError"):
        create_backbone(misfit)


@pytest.mark.skipif(not (ASSETS / "miniature.safetensors").exists(), reason="miniature weights are not trained yet")
def test_the_miniature_backbone_ships_with_its_weights():
    backbone = create_backbone("miniature")
    assert backbone(torch.zeros(1, 3, 48, 48)).shape == (1, 36, 96)
    random = create_backbone(get_spec("miniature"), pretrained=False)
    assert not torch.equal(backbone.vit.pos_embed, random.vit.pos_embed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value * float("nan"), "norm.weight has values that are infinite or not a number$"),
        (lambda value: value / 0, "norm.weight has values that are infinite or not a number$"),
        (lambda value: value.to(torch.int32), "norm.weight is torch.int32$"),
    ],
)
def test_weights_that_are_no_numbers_are_named(folder, change, said):
    weights = weights_of(SPEC)
    save_file(weights | {"norm.weight": change(weights["norm.weight"].abs() + 1)}, folder / "small.safetensors")
    with pytest.raises(ValueError, match=f"weights .*small.safetensors are damaged: {said}"):
        create_backbone(SPEC)


def test_headers_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    assert read_header(path) == ({"a": [100]}, {})
    whole = path.read_bytes()
    for content, said in (
        (whole[:-1], r"cut off: 4\d\d bytes of 4\d\d"),
        (struct.pack("<Q", 2**62) + whole[8:], "its header has 4,611,686,018,427,387,904 bytes"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "recursion"),
        (b"", "is not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "is not a safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"is not a safetensors file: .*{said}" if said[0] != "i" else said):
            read_header(path)
