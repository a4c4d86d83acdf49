"""Released VLMs by id, from a hub on this machine that holds checkpoints of the reference in small."""

import json
import os
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
import torch
from golden_cases import ROOT, golden_dir, load_json, load_tensors, requires_golden
from hub_server import hub_server
from reference import ours, spec_of, within
from test_import_golden import B7, golden_llm

import prismatic
from eval.generate_engine import load_engine
from eval.streaming.start import start_engine
from prismatic.models import load, released
from prismatic.models.released import IDS, obtain
from vision_backbones.backbone_files import save_backbone
from vision_backbones.vit import build_vit

NAME = "prism-clip+7b"
PLACE = f"/{released.HUB_REPO}/resolve/main/{quote(NAME)}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMATIC_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)  # where no run has the name
    with hub_server(monkeypatch, tmp_path / "cache") as running:
        yield running


def configuration(**model):
    settings = {"vision_backbone_id": "clip-vit-l-336px", "llm_backbone_id": "llama2-7b-pure",
                "arch_specifier": "no-align+gelu-mlp", "image_resize_strategy": "resize-naive"}  # fmt: skip
    return json.dumps({"model": settings | model, "stage": "finetune", "run_id": None}).encode()


@pytest.fixture
def golden(hub, tmp_path):
    """Puts the reference's example checkpoint on the hub; returns what it gives for an input."""
    g = load_tensors(f"{B7}/example_checkpoint_finetune_forward.safetensors")
    file = golden_dir() / B7 / "example_checkpoint_finetune.pt"
    projector = torch.load(file, weights_only=True)["model"]["projector"]
    found = {ours(f"projector.{name}"): value.shape for name, value in projector.items()}
    cases = load_json("B_prismatic/B5_vlm/cases.json")
    for name in cases:  # the golden VLM that has the shapes of the example
        other = load_tensors(f"B_prismatic/B5_vlm/{name}.safetensors")
        if {ours(key): value.shape for key, value in other.items() if key.startswith("projector.")} == found:
            break
    case = cases[name]
    spec, vit = spec_of(case), tmp_path / "vit.safetensors"
    save_backbone(vit, build_vit(spec).state_dict() | within(g, "vision_backbone.featurizer."), spec)
    parts = {"vision_backbone_id": str(vit), "llm_backbone_id": golden_llm(tmp_path / "llm", case)}
    hub.files[f"{PLACE}/config.json"] = configuration(arch_specifier=case["arch_specifier"], **parts)
    hub.files[f"{PLACE}/checkpoints/latest-checkpoint.pt"] = file.read_bytes()
    return g


def check(model, g):
    marks = torch.full((1, model.vision_backbone.num_tokens), model.config.image_token_id)
    ids = torch.cat([g["input_ids"][:, :1], marks, g["input_ids"][:, 1:]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=g["pixel_values"]).logits
    torch.testing.assert_close(logits, g["logits"], atol=1e-4, rtol=1e-5)


@requires_golden
def test_a_released_id_gives_the_recorded_logits_and_is_fetched_once(hub, golden, tmp_path):
    model, processor = prismatic.load(NAME)
    check(model, golden)
    assert processor.image_token_id == model.config.image_token_id
    fetched = [path for path, _ in hub.asked if path.startswith(PLACE)]
    assert fetched == [f"{PLACE}/config.json", f"{PLACE}/checkpoints/latest-checkpoint.pt"]
    hub.asked.clear()
    assert load.find_model(NAME) == tmp_path / "models" / NAME
    check(prismatic.load(NAME)[0], golden)
    assert not hub.asked


@requires_golden
def test_evaluate_and_chat_take_the_id(hub, golden):
    engine = load_engine(NAME, dtype=torch.float32, device="cpu", batch_size=2)
    check(engine.model, golden)
    chatting = start_engine(NAME, device="cpu")
    chatting.close(finish=False)


@requires_golden
def test_a_download_that_breaks_off_leaves_nothing_half(hub, golden, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    checkpoint = f"{PLACE}/checkpoints/latest-checkpoint.pt"
    hub.breaks[checkpoint] = [20_000] * 20
    with pytest.raises(ValueError, match="of which checkpoints/latest-checkpoint.pt .* closed connection"):
        prismatic.load(NAME)
    assert not (tmp_path / "models" / NAME).exists()
    hub.breaks.clear()
    check(prismatic.load(NAME)[0], golden)


@requires_golden
def test_of_two_that_ask_at_once_one_imports(hub, golden, tmp_path, capfd):
    places = []
    threads = [threading.Thread(target=lambda: places.append(obtain(NAME))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert places == [tmp_path / "models" / NAME] * 2
    assert capfd.readouterr().err.count(f"{NAME}: fetched once") == 1


@pytest.mark.slow
@requires_golden
def test_two_processes_with_a_mirror_of_the_hub_import_once(hub, golden, tmp_path):
    """As a user starts them: settings of the hub are environment variables."""
    code = (
        "import prismatic, torch\n"
        f"model, processor = prismatic.load({NAME!r})\n"
        "print(sum(float(p.double().abs().sum()) for p in model.parameters()))"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment, **options) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert not any(process.returncode for process in processes), said
    assert said[0][0] == said[1][0] and sum(error.count(f"{NAME}: fetched once") for _, error in said) == 1
    expected = sum(float(p.double().abs().sum()) for p in prismatic.load(NAME)[0].parameters())
    assert float(said[0][0]) == pytest.approx(expected, rel=1e-9)


@requires_golden
def test_a_run_of_the_name_goes_first(hub, golden, tmp_path):
    assert load.find_model(NAME) is None and load.find_model(obtain(NAME)) is not None
    hub.asked.clear()
    (tmp_path / "runs" / NAME).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds neither config.json nor checkpoints/"):
        prismatic.load(NAME)
    assert not hub.asked


class _Evil:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@requires_golden
def test_a_checkpoint_that_runs_code_is_refused_and_nothing_is_imported(hub, golden, tmp_path):
    torch.save({"model": {"projector": {}}, "more": _Evil(tmp_path / "was-run")}, tmp_path / "evil.pt")
    hub.files[f"{PLACE}/checkpoints/latest-checkpoint.pt"] = (tmp_path / "evil.pt").read_bytes()
    with pytest.raises(ValueError, match="is refused: reading it would call"):
        prismatic.load(NAME)
    assert not (tmp_path / "was-run").exists()
    assert [path for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("network", ["off", "refused"])
def test_without_a_network_it_is_said_how_to_do_without(hub, tmp_path, monkeypatch, network):
    if network == "off":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between five tries
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(ValueError) as error:
        prismatic.load(NAME)
    message = str(error.value)
    assert ("HF_HUB_OFFLINE is set" if network == "off" else "refused") in message and "\n" not in message
    files = f"{NAME}/config.json {NAME}/checkpoints/latest-checkpoint.pt"
    assert f"hf download TRI-ML/prismatic-vlms {files} --local-dir DIR" in message
    assert f"prismatic import-reference DIR/{NAME} {tmp_path / 'models' / NAME}" in message and not hub.asked


def test_a_gated_llm_is_named_before_much_is_fetched(hub):
    hub.files[f"{PLACE}/config.json"] = configuration()
    hub.files[f"{PLACE}/checkpoints/latest-checkpoint.pt"] = b"large"
    hub.gated = ("meta-llama/Llama-2-7b-hf",)
    with pytest.raises(ValueError) as error:
        prismatic.load(NAME)
    message = str(error.value)
    for said in ("meta-llama/Llama-2-7b-hf", "hf auth login", "consent", "--llm LLM"):
        assert said in message, message
    assert "\n" not in message and f"{PLACE}/checkpoints/latest-checkpoint.pt" not in [path for path, _ in hub.asked]


def test_names_that_are_nearly_right(hub):
    with pytest.raises(ValueError, match=r"no model called 'prism-dinosigclip\+7b'.*did you mean prism-dinosiglip\+7b"):
        prismatic.load("prism-dinosigclip+7b")


def test_how_many_there_are():
    """Which of them there are, and how many, was read from the reference's list: 49 names of 48 models."""
    assert len(IDS) == len(set(IDS)) == 48 and {name.rpartition("+")[2] for name in IDS} == {"3b", "7b", "13b"}
