"""Backbones on disk: run folders, checkpoints and files that say what they are."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from golden_cases import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vision_backbones import BackboneSpec, create_backbone, get_spec, resolve_spec
from vision_backbones.__main__ import main
from vision_backbones.backbone_files import decoder_path, save_backbone
from vision_backbones.vit import build_vit
from vision_backbones.weights import read_header

SPEC = dataclasses.replace(get_spec("miniature-aligned"), id="mine", weights=None)


def save(path, seed=0, **options):
    """Writes a whole timm ViT with random weights; gives its state dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    state = build_vit(SPEC).state_dict() | {
        "head.weight": torch.zeros(5, 96),
        "attn_pool.latent": torch.zeros(1, 1, 96),
    }
    save_backbone(path, state, SPEC, **options)
    return state


def test_what_is_written(tmp_path):
    path = tmp_path / "new.safetensors"
    decoder = {"decoder.pos_embed": torch.zeros(37, 1, 96).transpose(0, 1), "encoder.head.bias": torch.ones(96)}
    state = save(path, decoder=decoder, decoder_heads=4, loss="0.5")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(state) - {"head.weight", "attn_pool.latent"}
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in file.keys())
    assert metadata["loss"] == "0.5" and BackboneSpec.from_dict(json.loads(metadata["spec"])) == SPEC
    assert decoder_path(path) == tmp_path / "new.decoder.safetensors"
    found = load_file(decoder_path(path))
    assert found.keys() == decoder.keys() and all(torch.equal(found[k], v) for k, v in decoder.items())
    with safe_open(decoder_path(path), "pt") as file:
        assert file.metadata() == {"decoder": '{"num_heads": 4}'}

    shapes, read = read_header(path)
    assert read == metadata and shapes == {k: list(v.shape) for k, v in load_file(path).items()}

    save(path, seed=1)
    assert not decoder_path(path).exists(), "the decoder of the earlier weights"
    assert [p.name for p in tmp_path.iterdir()] == ["new.safetensors"]
    with pytest.raises(ValueError, match="written as NAME.safetensors, got .*new.pth"):
        save(tmp_path / "new.pth")
    with pytest.raises(ValueError, match="decoder_heads must say"):
        save(path, decoder=decoder)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "new.safetensors"
    save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save(path, seed=1)
    assert path.read_bytes() == before


def test_runs_checkpoints_and_files_are_backbones(tmp_path):
    run = tmp_path / "run"
    last = run / "checkpoints" / "last" / "backbone.safetensors"
    best = run / "checkpoints" / "best" / "backbone.safetensors"
    weights = {last: save(last, seed=1)}
    assert get_spec(str(run)) == dataclasses.replace(SPEC, weights=str(last))
    weights[best] = save(best, seed=2)
    for id, file in ((run, best), (last.parent, last), (best, best)):
        backbone = create_backbone(str(id))
        assert backbone.spec == dataclasses.replace(resolve_spec(SPEC), weights=str(file))
        assert torch.equal(backbone.vit.pos_embed, weights[file]["pos_embed"])


def test_a_registered_id_goes_before_a_folder(tmp_path, monkeypatch):
    save(tmp_path / "miniature" / "backbone.safetensors")
    save(tmp_path / "own" / "backbone.safetensors")
    monkeypatch.chdir(tmp_path)
    assert get_spec("miniature").weights == "miniature"
    assert get_spec("own").weights == "own/backbone.safetensors"


def test_a_file_in_the_working_directory_is_found(tmp_path, monkeypatch):
    state = save(tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(create_backbone("mine.safetensors").vit.pos_embed, state["pos_embed"])


def finetune_run(folder):
    (folder / "checkpoints" / "epoch-01").mkdir(parents=True)


def wrong_spec(folder):
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "backbone.safetensors", {"spec": '{"id": "a", "arhc": "b"}'})


def no_spec(folder):
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "backbone.safetensors")


def no_safetensors(folder):
    folder.mkdir()
    (folder / "backbone.safetensors").write_bytes(b"\xff" * 20)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (finetune_run, "holds no vision backbone: looked for .*best/backbone.safetensors.*a finetuned VLM is none"),
        (wrong_spec, "`spec` in the metadata of .* cannot be read: unknown key 'arhc' .*did you mean arch"),
        (no_spec, "does not say which backbone it is .*vision_backbones convert"),
        (no_safetensors, "is not a safetensors file"),
        (lambda folder: None, "unknown vision backbone .*a run of recipes/align.py .none is there"),
    ],
)
def test_paths_that_are_no_backbones_are_refused(make, expected, tmp_path):
    make(tmp_path / "thing")
    with pytest.raises(ValueError, match=expected):
        get_spec(str(tmp_path / "thing"))


def test_a_pickle_is_sent_to_conversion(tmp_path):
    (tmp_path / "in.pth.tar").touch()
    with pytest.raises(ValueError, match="convert .*in.pth.tar OUT.safetensors"):
        get_spec(str(tmp_path / "in.pth.tar"))


def test_reading_a_run_imports_neither_torch_nor_timm(tmp_path):
    save(tmp_path / "checkpoints" / "best" / "backbone.safetensors")
    code = "import sys, vision_backbones as v; print(v.get_spec(sys.argv[1]).id, {'torch', 'timm'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "mine set()", done.stderr


def test_a_run_is_described(tmp_path, monkeypatch, capsys):
    save(tmp_path / "run" / "checkpoints" / "best" / "backbone.safetensors")
    monkeypatch.setattr("sys.argv", ["vision_backbones", "describe", str(tmp_path / "run")])
    main()
    shown = capsys.readouterr().out
    assert "mine" in shown and "[B, 37, 96], 1 prefix tokens" in shown
