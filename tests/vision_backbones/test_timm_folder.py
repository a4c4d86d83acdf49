"""Backbones as repositories of timm: what timm loads is what we compute, soft cap included, or nothing is loaded."""

import dataclasses
import json
import subprocess
import sys

import pytest
import timm
import torch
from golden_cases import ROOT
from PIL import Image
from safetensors import safe_open

from vision_backbones import BackboneSpec, create_backbone, get_spec, list_backbones, resolve_spec
from vision_backbones.__main__ import main
from vision_backbones.timm_folder import POOLING, export_timm, timm_config
from vision_backbones.vit import build_vit, load_network

PIXELS = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bundled aligned ViT as a folder of timm."""
    out = tmp_path_factory.mktemp("timm") / "aligned"
    assert export_timm("miniature-aligned", out).startswith(f"wrote {out}: timm.create_model('local-dir:{out}'")
    return out


def load(folder, **options):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@torch.no_grad()
def test_timm_computes_the_features_of_a_soft_capped_vit(folder):
    ours, theirs = create_backbone("miniature-aligned").eval(), load(folder)
    features = ours(PIXELS)
    assert torch.equal(theirs.forward_features(PIXELS), features) and theirs(PIXELS).shape == (2, 96)
    (map,) = theirs.forward_intermediates(PIXELS, indices=1, norm=True, intermediates_only=True)
    assert torch.equal(map, features[:, 1:].transpose(1, 2).unflatten(2, (6, 6)))

    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **get_spec("miniature-aligned").arch_kwargs).eval()
    plain.load_state_dict(theirs.state_dict())
    assert (plain.forward_features(PIXELS) - features).abs().max() > 0.001, "the cap changes nothing: no test of it"


@pytest.mark.parametrize(
    "imported",
    [(), *(pytest.param((name,), marks=pytest.mark.slow) for name in ("vision_backbones", "prismatic"))],
    ids=" ".join,
)
def test_a_timm_that_does_not_know_the_cap_refuses_the_folder(folder, imported):
    code = f"import timm; timm.create_model('local-dir:{folder}', pretrained=True)"
    lines = [*(f"import {name}, sys; assert 'timm' not in sys.modules" for name in imported), code]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == bool(imported), done.stderr[-2000:]
    assert imported or done.stderr.strip().endswith("RuntimeError: Unknown model (soft_capped_vit)")


def test_the_pixels_of_timms_transform_are_ours(folder):
    config = timm.data.resolve_data_config(model=load(folder))
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    assert torch.equal(
        timm.data.create_transform(**config)(image), create_backbone("miniature-aligned").transform(image)
    )


@torch.no_grad()
def test_what_others_do_with_the_folder_keeps_the_cap(folder, tmp_path, monkeypatch):
    """Repositories of the hub, timm's own saving, transformers, a new classifier, maps, other image sizes, us."""
    features = create_backbone("miniature-aligned").eval()(PIXELS)
    assert torch.equal(create_backbone(str(folder)).eval()(PIXELS), features)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda repo_id, filename, **_: str(folder / filename))
    model = timm.create_model("hf-hub:owner/name", pretrained=True).eval()
    assert torch.equal(model.forward_features(PIXELS), features)

    # An older timm does not record arguments; what it saves without them does not load.
    arguments = {} if hasattr(model, "_model_args") else json.loads((folder / "config.json").read_text())["model_args"]
    timm.models.save_for_hf(model, tmp_path / "again", safe_serialization=True, model_args=arguments)
    assert torch.equal(load(tmp_path / "again").forward_features(PIXELS), features)
    from transformers import AutoModel

    assert torch.equal(AutoModel.from_pretrained(folder).eval()(PIXELS).last_hidden_state, features)
    classifier = load(folder, num_classes=5)
    assert torch.equal(classifier.forward_features(PIXELS), features) and classifier(PIXELS).shape == (2, 5)
    assert [map.shape[1:] for map in load(folder, features_only=True, out_indices=[3, 7])(PIXELS)] == [(96, 6, 6)] * 2
    wide = load(folder, dynamic_img_size=True).forward_intermediates(PIXELS[..., :32, :], intermediates_only=True)
    assert wide[-1].shape == (2, 96, 4, 6)
    assert torch.equal(create_backbone(str(folder / "model.safetensors")).eval()(PIXELS), features)


@torch.no_grad()
def test_a_plain_vit_needs_nothing_of_ours(tmp_path):
    export_timm("miniature", tmp_path / "plain")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224" and "vision_backbones" not in _card(tmp_path / "plain")
    (map,) = load(tmp_path / "plain").forward_intermediates(PIXELS, indices=[6], intermediates_only=True)
    assert torch.equal(map.flatten(2).transpose(1, 2), create_backbone("miniature").eval()(PIXELS))


def _card(folder):
    return (folder / "README.md").read_text()


def test_the_folder(folder):
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"] == {
        "vit": "vit_tiny_patch16_224",
        "soft_cap": 30.0,
        **get_spec("miniature").arch_kwargs,
    }
    assert config["num_classes"] == 0 and config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert BackboneSpec.from_dict(json.loads(file.metadata()["spec"])).soft_cap == 30
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-feature-extraction"
    assert card.text.count("import vision_backbones") == 2 and "indices=[7], norm=True" in card.text


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_huge_patch14_gap_224"])
@torch.no_grad()
def test_heads_that_pool_are_left_out(arch, tmp_path):
    """SigLIP's has weights of attention pooling, another's a norm after the pooling: no weights of ours fill them."""
    spec = BackboneSpec("mine", arch=arch, image_size=32, arch_kwargs=SMALL, soft_cap=5.0, aligned=True)
    torch.manual_seed(0)
    vit = build_vit(resolve_spec(spec)).eval()
    vit.prune_intermediate_layers([2], prune_head=True)
    torch.save(vit.state_dict(), tmp_path / "w.pt")
    export_timm(dataclasses.replace(spec, weights=str(tmp_path / "w.pt")), tmp_path / "out")
    model, pixels = load(tmp_path / "out"), PIXELS[..., :32, :32]
    assert torch.equal(model.forward_features(pixels), vit.forward_features(pixels)) and model(pixels).shape == (2, 32)
    arguments = json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]
    assert {key: value for key, value in arguments.items() if "norm" in key or "pool" in key} in POOLING


@pytest.mark.slow
def test_every_registered_network_has_a_configuration():
    for spec in [resolve_spec(id) for id in list_backbones()]:
        if spec.parts:
            continue
        with torch.device("meta"):
            network = load_network(dataclasses.replace(spec, weights=None), pretrained=False)
        assert timm_config(spec, network)["num_classes"] == 0


def test_errors_are_one_line(folder, tmp_path, capsys, monkeypatch):
    for argv, said in {
        ("miniature-aligned", str(folder)): "exists already: choose another folder",
        ("miniature-alinged", str(tmp_path / "out")): "did you mean miniature-aligned",
        (
            "dinoclip-vit-l-336px",
            str(tmp_path / "out"),
        ): "is fused, and timm has no such model: export its parts, dinov2",
        ("clip-vit-b-aligned", str(tmp_path / "out")): "no weights file",
    }.items():
        monkeypatch.setattr(sys, "argv", ["vision_backbones", "export", *argv])
        with pytest.raises(SystemExit):
            main()
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="timm has no architecture 'vit_tiny_patch16_242': did you mean vit_tiny"):
        timm.create_model("soft_capped_vit", vit="vit_tiny_patch16_242", soft_cap=30.0)
    for vit, said in {"samvit_base_patch16": "cannot build .*'attn_layer'", "resnet18": "'attn_layer'"}.items():
        with pytest.raises(ValueError, match=said), torch.device("meta"):
            timm.create_model("soft_capped_vit", vit=vit, soft_cap=30.0)


def test_an_export_that_timm_computes_otherwise_is_not_written(tmp_path, monkeypatch):
    original = timm_config

    def without_the_cap(spec, vit):
        config = original(spec, vit)
        arguments = {key: value for key, value in config["model_args"].items() if key not in ("vit", "soft_cap")}
        return config | {"architecture": "vit_tiny_patch16_224", "model_args": arguments}

    monkeypatch.setattr("vision_backbones.timm_folder.timm_config", without_the_cap)
    with pytest.raises(ValueError, match="does not compute its features"):
        export_timm("miniature-aligned", tmp_path / "out")
    assert not list(tmp_path.iterdir())
