"""Released weights by name, from a server on this machine."""

import dataclasses
import json
import os
import threading
from functools import partial

import forked
import pytest
import torch
from file_server import file_server
from golden_cases import load_json, load_tensors, requires_golden
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoints import FOLDER, part, released, student_of

from vision_backbones import BackboneSpec, create_backbone, get_spec, list_backbones, register, registry
from vision_backbones.convert import convert
from vision_backbones.released import RELEASED, Release
from vision_backbones.vit import build_vit

VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 4}
PLAIN = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
TINY = BackboneSpec("tiny", "vit_tiny_patch16_224", 32, arch_kwargs=VIT, weights="tiny-released", **PLAIN)
ALIGNED = dataclasses.replace(TINY, soft_cap=30.0, aligned=True)
FILE = "tiny.pth.tar"
OF_TINY = Release("tiny", FILE, "http://127.0.0.1:9/tiny", "http://127.0.0.1:9/page", 32)


@pytest.fixture
def server(monkeypatch):
    """A mirror with nothing on it, from which a tiny ViT would be fetched, too."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setitem(RELEASED, "tiny-released", OF_TINY)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    with file_server() as running:
        monkeypatch.setenv("VISION_BACKBONES_MIRROR", f"{running.url}/")
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "weights"
    monkeypatch.setenv("VISION_BACKBONES_WEIGHTS", str(place))
    return place


def checkpoint(tmp_path, state=None):
    return released(tmp_path / "made.pth.tar", state or student_of(TINY)).read_bytes()


def kept(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@requires_golden
@pytest.mark.parametrize("name", ["ls_absorbed", "ema_preferred", "prefix_orig_mod_module", "mlp_head"])
def test_a_checkpoint_of_the_authors_code_gives_its_features(server, folder, tmp_path, name):
    g, case = load_tensors(f"{FOLDER}/{name}.safetensors"), load_json(f"{FOLDER}/cases.json")[name]
    ema = {"state_dict_ema": part(g, "state_dict_ema.")} if case["ema"] else {}
    server.files[f"/{FILE}"] = released(tmp_path / "a.pth.tar", part(g, "state_dict."), **ema).read_bytes()
    backbone = create_backbone(ALIGNED).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(g["input"]), g["output.forward_features"], atol=2e-5, rtol=1e-5)
    assert kept(folder) == ["tiny-released.decoder.safetensors", "tiny-released.json", "tiny-released.safetensors"]


def test_fetching_writes_what_the_conversion_writes(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    register(ALIGNED)
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    create_backbone("tiny", image_size=64)  # the file keeps the resolution of the checkpoint
    convert(tmp_path / "made.pth.tar", tmp_path / "by-hand.safetensors", "tiny")
    for suffix in (".safetensors", ".decoder.safetensors"):
        fetched, by_hand = folder / f"tiny-released{suffix}", tmp_path / f"by-hand{suffix}"
        found, expected = load_file(fetched), load_file(by_hand)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
        with safe_open(fetched, "pt") as a, safe_open(by_hand, "pt") as b:
            assert a.metadata() == b.metadata()
    assert get_spec(str(fetched.with_name("tiny-released.safetensors"))).image_size == 32


def test_the_second_use_needs_no_network(server, folder, tmp_path):
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    first = create_backbone(ALIGNED).vit.state_dict()
    assert [path for path, _ in server.asked] == [f"/{FILE}"]
    again = create_backbone(ALIGNED).vit.state_dict()
    assert len(server.asked) == 1 and all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_killed_download_goes_on_where_it_stopped(server, folder, tmp_path, monkeypatch):
    server.files[f"/{FILE}"], server.breaks[f"/{FILE}"] = checkpoint(tmp_path), [30_000]
    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", partial(_raise, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            create_backbone(ALIGNED)
    assert (folder / f"{FILE}.unfinished").stat().st_size == 30_000
    create_backbone(ALIGNED)
    assert [asked for _, asked in server.asked] == [None, "bytes=30000-"]
    assert kept(folder) == ["tiny-released.decoder.safetensors", "tiny-released.json", "tiny-released.safetensors"]


def _raise(error, *_):
    raise error


def test_another_file_than_the_first_is_refused(server, folder, tmp_path):
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    create_backbone(ALIGNED)
    (folder / "tiny-released.safetensors").unlink()
    first = json.loads((folder / "tiny-released.json").read_text())["checkpoint"]["sha256"]
    state = student_of(TINY)
    server.files[f"/{FILE}"] = checkpoint(tmp_path, state | {"encoder.norm.bias": state["encoder.norm.bias"] + 1})
    with pytest.raises(ValueError, match=f"is not the file that was expected: .* expected {first}. If it is right"):
        create_backbone(ALIGNED)
    assert FILE not in kept(folder) and "tiny-released.safetensors" not in kept(folder)
    (folder / "tiny-released.json").unlink()
    create_backbone(ALIGNED)


def test_a_known_checksum_is_held_to(server, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASED, "tiny-released", dataclasses.replace(OF_TINY, sha256="0" * 64))
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    with pytest.raises(ValueError, match=f"expected {'0' * 64}"):
        create_backbone(ALIGNED)
    assert kept(folder) == []


@pytest.mark.parametrize("name", ["tiny-released.safetensors", "tiny-released.decoder.safetensors"])
def test_weights_that_changed_on_the_disk_are_refused(server, folder, tmp_path, name):
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    create_backbone(ALIGNED)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} has changed since it was fetched: .*delete .* to fetch it again"):
        create_backbone(ALIGNED)


def test_the_page_of_google_drive_is_answered(server, folder, tmp_path, monkeypatch):
    """Its form, as Drive sends it for files that are too large to be scanned for viruses."""
    monkeypatch.delenv("VISION_BACKBONES_MIRROR")
    address = f"{server.url}/uc?export=download&id=abc"
    monkeypatch.setitem(RELEASED, "tiny-released", dataclasses.replace(OF_TINY, url=address))
    page = (
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
        f'<form id="download-form" action="{server.url}/download" method="get">'
        '<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="abc">'
        '<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">'
        '<input type="hidden" name="uuid" value="1-2&amp;3"></form></body></html>'
    )
    asked = "/uc?export=download&id=abc"
    server.files[asked], server.types[asked] = page.encode(), "text/html; charset=utf-8"
    server.files["/download?id=abc&export=download&confirm=t&uuid=1-2%263"] = checkpoint(tmp_path)
    create_backbone(ALIGNED)
    assert len(server.asked) == 2
    (folder / "tiny-released.safetensors").unlink()
    server.files[asked] = b"<html><title>Google Drive - Quota exceeded</title></html>"
    with pytest.raises(ValueError, match="a web page, not the file .'Google Drive - Quota exceeded'"):
        create_backbone(ALIGNED)


class _Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


RECORDS = [
    {"files": []},
    {"files": {}},
    {"files": {"tiny-released.safetensors": {}}},
    {"files": {"tiny-released.safetensors": 5}},
    {"files": {"tiny-released.safetensors": {"sha256": "0"}, "../other": {"sha256": "0"}}},
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_records_of_another_shape_are_refused(server, folder, tmp_path, record):
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    create_backbone(ALIGNED)
    (folder / "tiny-released.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="tiny-released.json cannot be read .*delete .* if the weights are right"):
        create_backbone(ALIGNED)


@pytest.mark.parametrize("about", [{}, 5])
def test_a_record_of_another_shape_is_refused_before_the_download(server, folder, about):
    folder.mkdir()
    (folder / "tiny-released.json").write_text(json.dumps({"checkpoint": about}))
    with pytest.raises(ValueError, match="tiny-released.json cannot be read .no sha256"):
        create_backbone(ALIGNED)
    assert kept(folder) == ["tiny-released.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no room")])
def test_what_was_downloaded_goes_if_its_conversion_ends(server, folder, tmp_path, monkeypatch, error):
    """Else it would count as put there by hand."""
    server.files[f"/{FILE}"] = checkpoint(tmp_path)
    monkeypatch.setattr("vision_backbones.released.write_converted", lambda *arguments: _raise(error))
    with pytest.raises((KeyboardInterrupt, ValueError)):
        create_backbone(ALIGNED)
    assert FILE not in kept(folder)


def test_a_pickle_that_runs_code_is_refused_and_nothing_stays(server, folder, tmp_path):
    released(tmp_path / "evil.pth.tar", student_of(TINY), args=_Evil(tmp_path / "was-run"))
    server.files[f"/{FILE}"] = (tmp_path / "evil.pth.tar").read_bytes()
    with pytest.raises(ValueError, match="is refused: reading it would call '(posix|nt).system'"):
        create_backbone(ALIGNED)
    assert kept(folder) == [] and not (tmp_path / "was-run").exists()


def test_a_checkpoint_of_another_vit_is_refused_and_nothing_stays(server, folder, tmp_path):
    wider = dataclasses.replace(TINY, arch_kwargs=VIT | {"embed_dim": 24})
    server.files[f"/{FILE}"] = checkpoint(tmp_path, student_of(wider))
    with pytest.raises(ValueError, match="do not fit VisionTransformer"):
        create_backbone(ALIGNED)
    assert kept(folder) == []


@pytest.mark.parametrize("network", ["off", "refused"])
def test_without_a_network_it_is_said_how_to_do_without(server, folder, monkeypatch, network):
    if network == "off":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VISION_BACKBONES_MIRROR", "http://127.0.0.1:9")
    with pytest.raises(ValueError) as error:
        create_backbone("clip-vit-b-aligned")
    message, weights = str(error.value), folder / "clip-vit-b-maskembed.safetensors"
    assert ("HF_HUB_OFFLINE is set" if network == "off" else "refused") in message and "\n" not in message
    assert "https://drive.google.com/file/d/1jZcgXIRXSoObN0HmFjjd9Plp-U91C9a7/view" in message
    assert f"save it as {folder}/clip-vit-b-aligned.pth.tar" in message
    command = f"prismatic backbones convert clip-vit-b-aligned.pth.tar {weights} --backbone clip-vit-b-aligned"
    assert command in message and not server.asked


def test_a_checkpoint_put_there_by_hand_is_converted_and_kept(server, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder.mkdir()
    (folder / FILE).write_bytes(checkpoint(tmp_path))
    create_backbone(ALIGNED)
    assert not server.asked and FILE in kept(folder)


@pytest.mark.slow
def test_of_two_processes_one_downloads(server, folder, tmp_path):
    both = threading.Barrier(2, timeout=2)

    def late(asked, content):  # so that a second request would come in the meantime
        try:
            both.wait()
        except threading.BrokenBarrierError:
            pass
        return 200, {"Content-Length": str(len(content))}, content

    server.files[f"/{FILE}"], server.lies[f"/{FILE}"] = checkpoint(tmp_path), late
    code = (
        "from vision_backbones import BackboneSpec, create_backbone\n"
        "from vision_backbones.released import RELEASED, Release\n"
        f"RELEASED['tiny-released'] = {OF_TINY!r}\n"
        f"print(float(create_backbone({ALIGNED!r}).vit.pos_embed.sum()))"
    )
    processes = [forked.Process(["-c", code]) for _ in range(2)]
    said = [process.communicate(60) for process in processes]
    assert all(process.returncode == 0 for process in processes), said
    assert said[0][0] == said[1][0] and len(server.asked) == 1
    assert sum("waiting for another process" in error for _, error in said) == 1
    assert kept(folder) == ["tiny-released.decoder.safetensors", "tiny-released.json", "tiny-released.safetensors"]


def test_moco_v3(server, folder, tmp_path):
    """Its training keeps two encoders and a predictor; the names are those of its code."""
    torch.manual_seed(0)
    vit = build_vit(TINY)
    base = {name: torch.randn_like(value) for name, value in vit.state_dict().items()}
    head = {"head.0.weight": torch.randn(8, 16), "head.1.running_mean": torch.randn(8)}
    head["head.1.num_batches_tracked"] = torch.tensor(7)
    state = {f"module.base_encoder.{name}": value for name, value in (base | head).items()}
    state |= {name.replace("base_encoder", "momentum_encoder"): value * 0.9 for name, value in state.items()}
    state["module.predictor.0.weight"] = torch.randn(8, 8)
    torch.save(
        {"epoch": 300, "arch": "vit_base", "state_dict": state, "scaler": {"scale": 2.0}}, tmp_path / "m.pth.tar"
    )
    server.files[f"/{FILE}"] = (tmp_path / "m.pth.tar").read_bytes()
    loaded = create_backbone(dataclasses.replace(TINY)).vit.state_dict()
    assert loaded and all(torch.equal(value, base[name]) for name, value in loaded.items())
    assert kept(folder) == ["tiny-released.json", "tiny-released.safetensors"]


def test_every_release_belongs_to_a_backbone():
    by_weights = {spec.weights: spec for spec in map(get_spec, list_backbones())}
    assert {release.backbone for release in RELEASED.values()} == {
        "clip-vit-b-aligned", "clip-vit-l-aligned", "clip-vit-l-336px-aligned", "siglip-vit-so400m-384px-aligned",
        "moco-vit-b",
    }  # fmt: skip
    for name, release in RELEASED.items():
        spec = by_weights[name]
        assert (spec.id, spec.image_size) == (release.backbone, release.image_size)
        assert spec.allow_border == release.allow_border and release.file.endswith(".pth.tar")
        assert release.url.startswith("https://") and release.page.startswith("https://")
