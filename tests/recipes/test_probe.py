"""The probe end to end on a few scenes: what it leaves, computes, keeps and refuses."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from golden_cases import requires_samples, samples_dir
from image_runs import interrupt, run_align
from image_runs import metrics as metrics_of
from PIL import Image

from eval.probing import features, metrics, train
from eval.probing import plots as pictures
from eval.probing.backbone import ProbedBackbone
from eval.probing.data import PatchExamples, find_root, get_dataset, list_pairs
from eval.probing.heads import make_head
from eval.probing.labels import unpack
from eval.probing.plots import colour, paint
from prismatic.data.samplers import shuffle_indices
from prismatic.training.optim import cosine_rate
from recipes.config.probe import ProbeConfig, parse_probe
from recipes.probe import main
from vision_backbones import BackboneSpec, register
from vision_backbones.registry import resolve_spec

pytestmark = pytest.mark.usefixtures("quick")
WORLD = ["--dataset", "miniature", "--data_root", "miniature:20:7"]
SMALL = [*WORLD, "--backbone", "miniature", "--batch_size", "8", "--epochs", "2", "--warmup_steps", "2"]
SMALL += ["--precision", "fp32", "--workers", "0"]


@pytest.fixture
def drawn():
    """Requested by tests of what is drawn."""


@pytest.fixture(autouse=True)
def draws(request, monkeypatch):
    """Only tests that look at pictures have them drawn: that is most of the time of a small run."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(train, "draw_samples", lambda *args: None)
        monkeypatch.setattr(train, "draw_classes", lambda *args: None)
        monkeypatch.setattr(pictures, "_write", lambda figure, path: path.write_bytes(b"not drawn"))


def probe(root, id, *arguments):
    return main(parse_probe([*SMALL, "--run_root", str(root), "--run_id", id, *arguments]))


def untimed(content):
    """Everything but how long it took."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key != "seconds"}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def test_what_a_run_leaves(tmp_path, capsys, drawn):
    """Two backbones with local and global labels: numbers, tables and pictures, best and last told apart."""
    arguments = ("--backbone", "miniature,miniature-aligned", "--labels", "union,global-union,majority")
    result = probe(tmp_path, "r", *arguments)
    run = tmp_path / "r"
    assert json.loads((run / "results.json").read_text()) == result
    assert result["images"] == {"train": 20, "val": 7} and result["classes"] == 17
    kinds = [(row["backbone"], row["labels"]) for row in result["probes"]]
    expected = [(b, k) for b in ("miniature", "miniature-aligned") for k in ("union", "global-union", "majority")]
    assert kinds == expected
    for row in result["probes"]:
        folder = run / row["backbone"] / row["labels"]
        assert row["steps"] == 6 and [e["epoch"] for e in row["epochs"]] == [1, 2]
        recalls = [e["macro_recall"] for e in row["epochs"]]
        assert row["best"]["epoch"] == 1 + recalls.index(max(recalls)) and row["last"]["epoch"] == 2
        for which in ("best", "last"):
            assert row[which]["scores"]["macro_recall"] == recalls[row[which]["epoch"] - 1]
            low, high = row[which]["intervals"]["macro_recall"]
            assert 0 <= low <= high <= 1
            assert ("sizes" in row[which]) == (row["labels"] != "global-union")
        with (folder / "classes.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [line["name"] for line in table] == list(get_dataset("miniature").classes)
        there = [line for line in table if int(line["there"])]
        mean = np.mean([float(line["last_recall"]) for line in there])
        assert mean == pytest.approx(row["last"]["scores"]["macro_recall"])
        left = "classes.csv classes.png head.json head.safetensors metrics.jsonl outcome.json samples.png".split()
        assert sorted(path.name for path in folder.iterdir()) == left
        for name in ("samples.png", "classes.png"):
            assert len(np.unique(np.asarray(Image.open(folder / name)))) > 20
    assert Image.open(run / "comparison.png").size[0] > 1000, "two charts"
    assert sorted(p.name for p in run.glob("[!.]*")) == [
        "comparison.png", "config.yaml", "data.json", "miniature", "miniature-aligned", "results.json"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "20 train, 7 val images with label maps" in printed and "best macro recall" in printed
    assert printed.count("features: 0.00 GB, computed once") == 2, "labels share a backbone's features"
    assert probe(tmp_path, "r", *arguments) == result and "is already finished" in capsys.readouterr().out


def test_a_killed_probe_goes_on(tmp_path, monkeypatch):
    """With the first backbone, and its first epoch, that it had not finished."""
    arguments = ["--backbone", "miniature,miniature-aligned", "--data_root", "miniature:9:3"]
    whole = untimed(probe(tmp_path, "whole", *arguments)["probes"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 7)  # of four steps each
        probe(tmp_path, "killed", *arguments)
    with pytest.raises(ValueError, match="was started with other settings .*--epochs"):
        probe(tmp_path, "killed", *arguments, "--epochs", "7")
    with monkeypatch.context() as patch:
        interrupt(patch, 3)  # two are left
        assert untimed(probe(tmp_path, "killed", *arguments)["probes"]) == whole
    for place in ("miniature", "miniature-aligned"):
        logs = [metrics_of(tmp_path / run / place / "union", timed=False) for run in ("whole", "killed")]
        assert logs[0] == logs[1] and len(logs[0]) == 6
    assert not [*(tmp_path / "killed").rglob("checkpoints")]


def test_a_killed_probe_of_random_weights_goes_on(tmp_path, monkeypatch):
    """In the second probe, on the weights that the first was trained on as well."""
    arguments = "--pretrained false --labels union,majority --head linear --data_root miniature:9:3".split()
    whole = untimed(probe(tmp_path, "whole", *arguments))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 7)
        probe(tmp_path, "killed", *arguments)
    assert untimed(probe(tmp_path, "killed", *arguments)) == whole and whole["pretrained"] is False
    trained = probe(tmp_path, "trained", *arguments, "--pretrained", "true")
    assert trained["probes"][0]["last"]["loss"] != whole["probes"][0]["last"]["loss"]


def test_a_probe_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    scenes = shutil.copytree(find_root(get_dataset("miniature"), "miniature:9:3"), tmp_path / "scenes")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, 3)
        probe(tmp_path, "r", "--data_root", str(scenes))
    label = min((scenes / "annotations" / "training").iterdir())
    Image.fromarray(np.asarray(Image.open(label)).T).save(label)
    with pytest.raises(ValueError, match=r"was trained on other data \(other train label maps now\): restore that"):
        probe(tmp_path, "r", "--data_root", str(scenes))


def by_hand(head_name, kind, epochs=2):
    """The recipe written out: backbone run on every batch, plain AdamW, scores from one confusion matrix a class."""
    dataset, spec = get_dataset("miniature"), resolve_spec("miniature")
    root = find_root(dataset, "miniature:20:7")
    backbone = ProbedBackbone(spec, "all" if head_name == "transformer" else "suffix").eval()
    torch.manual_seed(0)
    head = make_head(head_name, kind, backbone, 17)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    sets = [PatchExamples(dataset, list_pairs(dataset, root, s), spec, 8, [kind]) for s in ("train", "val")]
    found = []

    def stack(examples, rows):
        pixels = torch.stack([examples[i]["pixel_values"] for i in rows])
        labels = torch.stack([unpack(examples[i][kind], 17, kind) for i in rows])
        with torch.no_grad():
            return backbone(pixels), labels

    step = 0
    for epoch in range(epochs):
        rows = shuffle_indices(20, 8, 0, epoch)
        for start in range(0, len(rows), 8):
            tokens, labels = stack(sets[0], rows[start : start + 8])
            rate = cosine_rate(step, peak=1e-3, minimum=1e-4, total_steps=6, warmup_steps=2)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            metrics.probe_loss(head(tokens), labels, kind).backward()
            optimizer.step()
            step += 1
        tokens, labels = stack(sets[1], range(7))
        with torch.no_grad():
            decided, labels = (head(tokens).sigmoid() > 0.5).flatten(0, 1), labels.flatten(0, -2).bool()
        hits = [(decided[labels[:, c], c].float().mean()).item() for c in range(17) if labels[:, c].any()]
        found.append(sum(hits) / len(hits))
    return found


@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_the_recipe_is_what_it_says(tmp_path, head):
    (row,) = probe(tmp_path, "r", "--head", head)["probes"]
    assert [e["macro_recall"] for e in row["epochs"]] == pytest.approx(by_hand(head, "union"), abs=1e-6)


@pytest.mark.parametrize(
    ("precision", "head"), [("fp32", "transformer"), pytest.param("bf16", "linear", marks=pytest.mark.slow)]
)
def test_the_cache_changes_nothing(tmp_path, precision, head):
    results = {}
    for cache in ("off", "memory", "disk"):
        arguments = ["--cache", cache, "--precision", precision, "--head", head, "--labels", "union,global-union"]
        arguments += ["--data_root", "miniature:9:3"]
        results[cache] = untimed(probe(tmp_path, f"with-{cache}", *arguments)["probes"])
        left = {p.name for p in (tmp_path / f"with-{cache}").glob("[!.]*")}
        assert left == {"comparison.png", "config.yaml", "data.json", "miniature", "results.json"}
    assert results["off"] == results["memory"] == results["disk"]


def test_features_are_computed_once(tmp_path, monkeypatch):
    seen = []
    real = ProbedBackbone.forward

    def counted(self, pixels):
        seen.append(len(pixels))
        return real(self, pixels)

    monkeypatch.setattr(ProbedBackbone, "forward", counted)
    probe(tmp_path, "memory", "--epochs", "3", "--labels", "union,majority")
    assert sum(seen) == 24 + 7, "the last batch of 20 images is filled up to 8"
    seen.clear()
    probe(tmp_path, "anew", "--epochs", "3", "--cache", "off")
    assert sum(seen) == 3 * (24 + 7) + 7, "and once for the picture"


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="features take .* GB, .* left: choose another --run_root"):
        probe(tmp_path, "r", "--cache", "disk")
    with pytest.raises(ValueError, match="of memory are free: use --cache disk"):
        features.check_room(10**18, "memory", tmp_path)


def test_finetuning_moves_the_backbone_and_nothing_else_does(tmp_path, monkeypatch):
    made = []
    real = ProbedBackbone.__init__

    def noted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(ProbedBackbone, "__init__", noted)
    fresh = ProbedBackbone(resolve_spec("miniature"), "all").state_dict()
    for name, arguments in (("frozen", []), ("full", ["--full_finetune", "true", "--cache", "off"])):
        probe(tmp_path, name, *arguments)
        now = made[-1].state_dict()
        moved = [key for key in fresh if not torch.equal(fresh[key], now[key])]
        assert (len(moved) == len(fresh)) if name == "full" else not moved


def test_it_learns(tmp_path):
    (row,) = probe(
        tmp_path,
        "r",
        "--data_root",
        "miniature:256:64",
        "--labels",
        "global-union",
        "--epochs",
        "8",
        "--head",
        "linear",
    )["probes"]
    first, last = row["epochs"][0], row["epochs"][-1]
    assert last["validation_loss"] < first["validation_loss"] and last["macro_f1_or_0"] > 0.15


@pytest.mark.parametrize("head", ["mlp", "transformer-cls", "transformer-separate"])
@pytest.mark.parametrize("skip", ["0", "2"])
def test_other_heads(tmp_path, head, skip):
    (row,) = probe(tmp_path, "r", "--head", head, "--skip_blocks", skip, "--max_steps", "2", "--cache", "off")["probes"]
    assert row["tokens"] == {"mlp": "suffix", "transformer-cls": "prefix"}.get(head, "all")
    assert row["steps"] == 2 and len(row["epochs"]) == 1


def test_runs_of_align_and_other_architectures(tmp_path):
    run_align(tmp_path, "aligned", "--max_steps", "1")
    arch = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    for name, timm_name in (("tiny-eva", "eva02_base_patch16_clip_224"), ("tiny-beit", "beit_base_patch16_224")):
        torch.manual_seed(0)
        spec = BackboneSpec(f"{name}-{tmp_path.name}", arch=timm_name, image_size=32, arch_kwargs=arch)
        weights = tmp_path / f"{name}.safetensors"
        from safetensors.torch import save_file

        (vit,) = ProbedBackbone(resolve_spec(spec), "all", pretrained=False).vits
        save_file({key: value.contiguous() for key, value in vit.state_dict().items()}, weights)
        register(dataclasses.replace(spec, weights=str(weights)))
    ids = [str(tmp_path / "aligned"), *(f"{name}-{tmp_path.name}" for name in ("tiny-eva", "tiny-beit"))]
    result = probe(tmp_path, "r", "--backbone", ",".join(ids), "--max_steps", "1")
    assert [row["backbone"] for row in result["probes"]] == ids


@requires_samples
@pytest.mark.parametrize(("dataset", "where", "classes"), [("coco-things", "coco", 92), ("ade20k", "ade20k", 151)])
def test_genuine_pairs(drawn, tmp_path, dataset, where, classes):
    root = ["--dataset", dataset, "--data_root", str(samples_dir() / where)]
    with pytest.raises(ValueError, match="--partial true"):
        probe(tmp_path, "r", *root)
    result = probe(tmp_path, "r", *root, "--partial", "true")
    assert result["partial"] and result["classes"] == classes


def test_every_failure_comes_before_the_work(tmp_path):
    for arguments, message in (
        (["--labels", "unoin"], "did you mean union"),
        (["--head", "transformer-cls", "--labels", "global-union"], "answers for every patch"),
        (["--backbone", "miniatur"], "did you mean miniature"),
        (["--backbone", "miniature,moco-vit-b"], "no weights file"),
        (["--skip_blocks", "8"], "expected 0 to 7"),
        (["--head_width", "10"], "--head_width is 10: expected a multiple of the 4 attention heads of miniature"),
        (["--image_size", "50"], "image size 50 is not a multiple of its patch size 8"),
        (["--data_root", "nowhere"], "no folder nowhere"),
        (["--plugins", "no_such_module"], "no plugin module"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(tmp_path, "r", *arguments)
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "coco"], "give --data_root the folder of coco"),
        ([*WORLD, "--cache", "ram"], "expected memory or disk or off"),
        ([*WORLD, "--full_finetune", "true"], "add --cache off"),
        ([*WORLD, "--labels", "union,union"], "one or more distinct values"),
        ([*WORLD, "--warmup_steps", "-1"], "expected 0 or more"),
        ([*WORLD, "--haed", "linear"], "did you mean --head"),
        (["--dataset", "ade20"], "did you mean ade20k"),
        ([*WORLD, "--head", "transfomer"], "did you mean transformer"),
        ([*WORLD, "--batch_size", "0"], "expected more than 0"),
    ],
)
def test_command_lines_that_make_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_probe(arguments)
    assert message in capsys.readouterr().err


def test_defaults_are_the_papers_unless_nothing_is_named():
    paper = parse_probe(["--backbone", "clip-vit-b-aligned", "--dataset", "coco", "--data_root", "somewhere"])
    assert paper == ProbeConfig(backbone=["clip-vit-b-aligned"], dataset="coco", data_root="somewhere")
    settings = (paper.learning_rate, paper.min_learning_rate, paper.warmup_steps, paper.weight_decay)
    assert settings == (1e-3, 1e-4, 500, 0.01)
    assert (paper.batch_size, paper.epochs, paper.precision, paper.seed) == (32, 5, "bf16", 0)
    assert (paper.head, paper.labels, paper.skip_blocks) == ("transformer", ["union"], 0)
    miniature = parse_probe([])
    assert miniature.backbone == ["miniature", "miniature-aligned"] and miniature.dataset == "miniature"
    assert parse_probe(["--backbone", "in1k-vit-s"]).data_root == miniature.data_root


def test_painted_patches():
    image = np.zeros((8, 8, 3), np.uint8)
    present = np.zeros((2, 2, 4), bool)
    present[0, 0, 0] = present[0, 1, 2] = present[1, 0, [1, 3]] = present[1, 1, [0, 3]] = True
    painted = paint(image, present, 4) / 255
    assert (painted[:4, :4] == 0).all(), "what belongs to none stays clear"

    def blended(number):
        return pytest.approx(0.6 * np.array(colour(number)), abs=0.01)

    assert painted[1, 5] == blended(2) and painted[5, 0] == blended(1) and painted[5, 3] == blended(3)
    assert painted[7, 4] == blended(3) and painted[7, 7] == blended(3), "class 0 gives way"
