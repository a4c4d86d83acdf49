"""Checkpoints of others: what is taken from them, what is refused, what they are converted to."""

import argparse
import dataclasses
import json
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import case_names, load_json, load_tensors, requires_golden
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vision_backbones import BackboneSpec, create_backbone, get_spec, register, registry
from vision_backbones.__main__ import main
from vision_backbones.checkpoints import read_checkpoint
from vision_backbones.convert import convert
from vision_backbones.soft_cap import SoftCapAttention
from vision_backbones.vit import build_vit
from vision_backbones.weights import load_weights

FOLDER = "A_locality_alignment/A4_checkpoint_loading"
CASES = case_names(f"{FOLDER}/cases.json")
ALIGNED = BackboneSpec(
    "tiny-clip-aligned",
    arch="vit_base_patch16_clip_quickgelu_224",
    image_size=32,
    arch_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4},
    soft_cap=30.0,
    aligned=True,
)


@pytest.fixture
def tiny_aligned(monkeypatch):
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    return register(ALIGNED)


def part(g, prefix):
    return {k.removeprefix(prefix): v for k, v in g.items() if k.startswith(prefix)}


def released(path, state, **more):
    """A checkpoint as the authors' training script saves it, by timm's CheckpointSaver."""
    args = argparse.Namespace(model="vit", output=Path("runs"), betas=(0.9, 0.95), amp=True, seed=np.int64(3))
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    optimizer.step()
    content = {
        "epoch": 4, "arch": "vit", "version": 2, "state_dict": state, "args": args,
        "optimizer": optimizer.state_dict(), "metric": np.float64(0.5),
    }  # fmt: skip
    torch.save(content | more, path)
    return path


def student_of(spec, *, layer_scale=None):
    """Random weights of a MaskEmbed student: `encoder.*` with a linear head, `decoder.*`."""
    torch.manual_seed(0)
    options = {"init_values": layer_scale} if layer_scale else {}
    vit = build_vit(dataclasses.replace(spec, arch_kwargs={**spec.arch_kwargs, **options}))
    encoder = {k: torch.randn_like(v) for k, v in vit.state_dict().items()}
    width = vit.embed_dim
    state = {f"encoder.{k}": v for k, v in encoder.items()}
    state |= {"encoder.head.weight": torch.randn(width, width), "encoder.head.bias": torch.randn(width)}
    state |= {
        "decoder.pos_embed": torch.randn(1, vit.pos_embed.shape[1], width),
        "decoder.norm.bias": torch.ones(width),
    }
    return state


@requires_golden
@pytest.mark.parametrize("name", CASES)
def test_released_checkpoints_load_as_the_reference_loads_them(name, tmp_path):
    case, g = load_json(f"{FOLDER}/cases.json")[name], load_tensors(f"{FOLDER}/{name}.safetensors")
    ema = {"state_dict_ema": part(g, "state_dict_ema.")} if case["ema"] else {}
    path = released(tmp_path / "last.pth.tar", part(g, "state_dict."), **ema)

    numbers = {
        k: json.loads(v.lower()) for k, v in case["target_ctor"].items() if k not in ("norm_layer", "global_pool")
    }
    eps = float(case["target_ctor"]["norm_layer"].split("eps=")[1].rstrip(")"))
    options = {"norm_layer": partial(nn.LayerNorm, eps=eps), "attn_layer": SoftCapAttention}
    vit = VisionTransformer(**numbers, **options, global_pool=case["target_ctor"]["global_pool"])
    vit.reset_classifier(0, "")
    load_weights(vit.eval(), path)

    expected = part(g, "target_after.")
    assert vit.state_dict().keys() == expected.keys() and not case["missing_keys"]
    for key, value in vit.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-7, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(g["input"]), g["output.forward_features"], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(vit(g["input"]), g["output.forward"], atol=2e-5, rtol=1e-5)

    found = read_checkpoint(path)
    assert found.ema == case["ema"]
    heads = [key for key in found.decoder if key.startswith("encoder.")]
    assert sorted(heads) == sorted(f"encoder.{key}" for key in case["unexpected_keys"])
    source = part(g, "state_dict_ema." if case["ema"] else "state_dict.")
    assert len(found.decoder) == sum(".decoder." in f".{key}" for key in source) + len(heads)


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pth.tar"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_checkpoints_of_timm_load(name, key, tmp_path):
    spec = dataclasses.replace(ALIGNED, weights=str(tmp_path / name))
    state = {k: torch.randn_like(v) for k, v in build_vit(spec).state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / name)
    loaded = create_backbone(spec).vit.state_dict()
    assert all(torch.equal(value, state[k]) for k, value in loaded.items())


def test_names_of_openai_are_converted(tmp_path):
    """The vision half of a CLIP state dict, with the names of openai/CLIP."""
    expected = {k: torch.randn_like(v) for k, v in build_vit(ALIGNED).state_dict().items()}
    names = [
        ("patch_embed.proj.", "conv1."), ("norm_pre.", "ln_pre."), ("norm.", "ln_post."),
        ("blocks.", "transformer.resblocks."),
        ("norm1.", "ln_1."), ("norm2.", "ln_2."), ("mlp.fc1.", "mlp.c_fc."), ("mlp.fc2.", "mlp.c_proj."),
        ("attn.qkv.", "attn.in_proj_"), ("attn.proj.", "attn.out_proj."),
    ]  # fmt: skip
    state = {}
    for name, value in expected.items():
        for ours, theirs in names:
            name = name.replace(ours, theirs, 1) if name.startswith(ours) or f".{ours}" in name else name
        state[f"visual.{name}"] = value
    state["visual.class_embedding"] = state.pop("visual.cls_token")[0, 0]
    state["visual.positional_embedding"] = state.pop("visual.pos_embed")[0]
    state |= {"visual.proj": torch.zeros(24, 8), "token_embedding.weight": torch.zeros(5, 8)}
    torch.save(state, tmp_path / "clip.pt")
    loaded = create_backbone(dataclasses.replace(ALIGNED, weights=str(tmp_path / "clip.pt"))).vit.state_dict()
    assert all(torch.equal(value, expected[k]) for k, value in loaded.items())


def test_another_architecture_is_told_by_names_and_shapes(tmp_path):
    smaller = {**ALIGNED.arch_kwargs, "embed_dim": 16, "depth": 1}
    path = released(tmp_path / "other.pth.tar", student_of(dataclasses.replace(ALIGNED, arch_kwargs=smaller)))
    with pytest.raises(ValueError) as error:
        create_backbone(dataclasses.replace(ALIGNED, weights=str(path)))
    message = str(error.value)
    for text in (
        "19 of the model's 31 tensors have another shape", "12 are missing", "0 are unexpected",
        "cls_token: file [1, 1, 16], model [1, 1, 24]", "pos_embed: file [1, 17, 16], model [1, 17, 24]",
        "; and 26 more", "another architecture",
    ):  # fmt: skip
        assert text in message, message


class Planted:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", [torch.save, partial(torch.save, _use_new_zipfile_serialization=False)])
def test_pickles_never_run_code(save, tmp_path):
    witness = tmp_path / "witness"
    for call in ((os.system, (f"touch {witness}",)), (eval, (f"open({str(witness)!r}, 'w')",))):
        path = tmp_path / "bad.pth.tar"
        save({"state_dict": {"x": torch.zeros(1)}, "args": Planted(call)}, path)
        with pytest.raises(ValueError, match=r"refused: reading it would call '\S*(system|eval)'.*Nothing was run"):
            read_checkpoint(path)
        assert not witness.exists()
        torch.load(path, weights_only=False)
        assert witness.exists(), "the trap does not work"
        witness.unlink()


def test_whole_models_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"refused: .*'torch.nn.modules.linear.Linear'.*save the state dict alone"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda p: p.write_bytes(b"<html>not found</html>"), "bad.pth (is not|cannot be read as) a checkpoint"),
        (lambda p: p.write_bytes(b""), "bad.pth (is not|cannot be read as) a checkpoint"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "bad.pth (is not|cannot be read as) a checkpoint"),
        (lambda p: torch.jit.script(nn.Linear(1, 1)).save(p), "bad.pth cannot be read .*TorchScript"),
        (lambda p: torch.save([1], p), "holds a list, expected a state dict"),
        (lambda p: torch.save({"epoch": 1, "weights": {}}, p), "found the keys epoch, weights, expected tensors"),
        (lambda p: None, "no file .*bad.pth"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_no_checkpoints_are_refused(write, expected, tmp_path):
    write(tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=expected):
        read_checkpoint(tmp_path / "bad.pth")
    with pytest.raises(
        ValueError, match="bad.zip is not a valid weights file: expected a name that ends with .safetensors, .pth"
    ):
        read_checkpoint(tmp_path / "bad.zip")


def test_conversion_gives_a_backbone_and_its_decoder(tiny_aligned, tmp_path):
    student = student_of(ALIGNED, layer_scale=0.1)
    ema = {f"module.{k}": v + 1 for k, v in student.items()}
    path = released(tmp_path / "in.pth.tar", student, state_dict_ema=ema)
    out = tmp_path / "out.safetensors"
    summary = convert(path, out, "tiny-clip-aligned")
    for text in (
        "31 tensors, 19,584 parameters",
        "moving average (EMA)",
        "4 LayerScale gammas folded",
        "0 tensors dropped",
        "4 heads",
    ):
        assert text in summary, summary

    spec = get_spec(str(out))
    assert spec == dataclasses.replace(registry.resolve_spec(ALIGNED), weights=str(out))
    from_file, direct = create_backbone(spec), create_backbone(dataclasses.replace(ALIGNED, weights=str(path)))
    for name, value in from_file.vit.state_dict().items():
        assert torch.equal(value, direct.vit.state_dict()[name]), name
    weight = student["encoder.blocks.1.mlp.fc2.weight"] + 1
    gamma = student["encoder.blocks.1.ls2.gamma"] + 1
    assert torch.equal(from_file.vit.blocks[1].mlp.fc2.weight, torch.diag(gamma) @ weight)

    decoder = tmp_path / "out.decoder.safetensors"
    expected = {k: v + 1 for k, v in student.items() if k.startswith(("decoder.", "encoder.head."))}
    found = load_file(decoder)
    assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
    with safe_open(decoder, "pt") as file:
        assert json.loads(file.metadata()["decoder"]) == {"num_heads": 4}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth.tar", "out.decoder.safetensors", "out.safetensors"]


def test_conversion_refuses(tiny_aligned, tmp_path):
    path = released(tmp_path / "in.pth.tar", student_of(ALIGNED))
    out = tmp_path / "out.safetensors"
    for blocker in (out, tmp_path / "out.decoder.safetensors"):
        blocker.touch()
        with pytest.raises(ValueError, match=f"{blocker.name} exists already"):
            convert(path, out, "tiny-clip-aligned")
        blocker.unlink()
    with pytest.raises(ValueError, match="do not fit VisionTransformer"):
        convert(path, out, "miniature")
    with pytest.raises(ValueError, match="fused: a checkpoint holds one ViT"):
        convert(path, out, "dinoclip-vit-l-336px")
    with pytest.raises(ValueError, match="no folder .*gone"):
        convert(path, tmp_path / "gone" / "out.safetensors", "tiny-clip-aligned")
    with pytest.raises(ValueError, match="written as NAME.safetensors, got .*out.pth"):
        convert(path, tmp_path / "out.pth", "tiny-clip-aligned")
    register(dataclasses.replace(ALIGNED, id="larger", image_size=64))
    with pytest.raises(ValueError, match=r"pos_embed is \(1, 17, 24\), expected \[1, 65, a multiple of 4 heads\]"):
        convert(path, out, "larger")
    assert not out.exists() and not (tmp_path / "out.decoder.safetensors").exists()


def test_the_command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vision_backbones", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    path, out = (
        released(tmp_path / "in.pth.tar", student_of(get_spec("miniature-aligned"))),
        tmp_path / "out.safetensors",
    )
    arguments = ("convert", path, out, "--backbone", "miniature-aligned")
    assert "out.decoder.safetensors: 4 tensors" in run(*arguments)
    described = run("describe", out)
    assert "[B, 37, 96], 1 prefix tokens" in described and f"weights         {out}" in described
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and "exists already" in error


def test_safetensors_of_a_student_load_too(tmp_path):
    student = student_of(ALIGNED, layer_scale=0.1)
    save_file(student, tmp_path / "student.safetensors")
    vit = create_backbone(dataclasses.replace(ALIGNED, weights=str(tmp_path / "student.safetensors"))).vit
    assert torch.equal(vit.norm.weight, student["encoder.norm.weight"])
