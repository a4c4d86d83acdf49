"""Labels, metrics, heads, backbone tokens, schedule and whole examples against the recorded reference."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from golden_cases import case_names, golden_dir, load_json, load_tensors, requires_golden, unsaid_heads
from golden_vits import strip
from torch import nn

from eval.probing import metrics
from eval.probing.backbone import ProbedBackbone
from eval.probing.classes import ADE20K, COCO_STUFF
from eval.probing.data import DATASETS, INVALID, PatchExamples
from eval.probing.heads import LatentHead, TransformerHead, make_head
from eval.probing.labels import LABELS, pack, reduce_labels, unpack
from prismatic.training.optim import cosine_rate
from vision_backbones import BackboneSpec
from vision_backbones import vit as vit_module

D = "D_patchseg"


def entries(relative):
    path = golden_dir() / D / relative
    return load_json(f"{D}/{relative}") if path.exists() else []


def names(relative):
    return case_names(f"{D}/{relative}")


@requires_golden
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("case", entries("label_reduction.json"), ids=lambda case: str(case["case"]))
def test_label_reduction(case, kind):
    tensors = strip(load_tensors(f"{D}/label_reduction.safetensors"), f"case{case['case']}.")
    expected = tensors[kind]
    found = reduce_labels(tensors["mask"].numpy(), case["patch_size"], case["num_classes"], kind)
    assert np.array_equal(found, expected.numpy())
    assert f"torch.{'float32' if found.dtype == bool else found.dtype}" == case["dtypes"][kind]
    again = unpack(torch.from_numpy(pack(found)), case["num_classes"], kind)
    assert torch.equal(again.to(expected.dtype), expected)


@requires_golden
@pytest.mark.parametrize("dataset", ["coco", "coco-things"])
def test_coco_values(dataset):
    tensors = load_tensors(f"{D}/coco_label_remap.safetensors")
    expected = tensors["things" if dataset == "coco-things" else "all"].numpy()
    found = DATASETS[dataset].class_of[tensors["raw"].numpy()]
    valid = tensors["all"].numpy() < len(COCO_STUFF)
    assert np.array_equal(found[valid], expected[valid])
    assert (found[~valid] == INVALID).all(), "values that are no id of COCO-Stuff, which the reference takes in"


@requires_golden
@pytest.mark.parametrize("name", names("class_names.json"))
def test_class_names(name):
    expected = load_json(f"{D}/class_names.json")[name]
    assert list({"coco": COCO_STUFF, "ade20k": ADE20K}[name]) == [expected[str(i)] for i in range(len(expected))]


def close(found, expected, **tolerance):
    """Equal as far as the reference's float32 goes; where it has nan, so have we (None in results.json)."""
    expected = np.array(expected, dtype=np.float64)  # "nan" is read as nan
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-9, equal_nan=True)


@requires_golden
@pytest.mark.parametrize("name", [name for name in names("metrics.json") if name != "size_union"])
def test_metrics(name):
    expected, tensors = load_json(f"{D}/metrics.json")[name], load_tensors(f"{D}/metrics.safetensors")
    kind, dense = name.removesuffix(".dense"), name.endswith(".dense")
    mine = strip(tensors, f"{name}.")
    numbers = sorted({key.split(".")[0] for key in mine if key.split(".")[0].isdigit()}, key=int)
    batches = [""] if dense else [f"{number}." for number in numbers]
    counts, losses, places = [], [], 0
    for prefix in batches:
        logits, targets = mine[f"{prefix}logits"], mine[f"{prefix}targets"]
        loss = metrics.probe_loss(logits, targets, kind)
        torch.testing.assert_close(loss, mine[f"{prefix}loss"], rtol=1e-6, atol=0)
        losses += [loss.item()] * len(logits)
        counts.append(metrics.count_hits(logits, targets, kind))
        places += logits.shape[0] * logits.shape[1]
    total = torch.cat(counts).sum(0).numpy()
    found = metrics.scores(total, places, kind)
    close(np.mean(losses), expected.pop("loss" if dense else "mean_loss"))
    assert expected.pop("num_classes") == total.shape[-1]
    for key, value in expected.items():
        close(found[key], value)
    as_json = metrics.jsonable(found)
    for key, value in expected.items():
        if not key.startswith("class_"):
            assert (as_json[key] is None) == (value == "nan"), key
    if "confusion" in mine:
        right, predicted, there = total
        confusion = mine["confusion"].numpy()
        if kind == "majority":  # [target, prediction]
            assert np.array_equal(confusion.diagonal(), right)
            assert np.array_equal(confusion.sum(0), predicted) and np.array_equal(confusion.sum(1), there)
        else:
            rest = places - predicted - there + right
            ours = np.stack([rest, predicted - right, there - right, right], -1).reshape(-1, 2, 2)
            assert np.array_equal(confusion, ours)


@requires_golden
def test_metrics_by_size():
    expected = load_json(f"{D}/metrics.json")["size_union"]
    tensors = strip(load_tensors(f"{D}/metrics.safetensors"), "size_union.")
    counts = metrics.count_hits(tensors["logits"], tensors["targets"], "union")
    sums, places = metrics.by_size(counts, tensors["logits"].shape[1], expected["num_buckets"])
    right, predicted, there = sums[..., 0].T
    ours = np.stack([places - predicted - there + right, predicted - right, there - right, right], -1)
    assert np.array_equal(tensors["confusion"].numpy(), ours.reshape(-1, 2, 2))
    recall = metrics.scores(sums, places, "union")["class_recall"][:, 0]
    close(recall, expected["class_recall"])
    close(recall.mean(), expected["macro_recall"])


class Announced:
    """What a head needs to know of a backbone."""

    def __init__(self, width, heads, patches, prefix):
        self.embed_dim, self.num_heads, self.num_prefix_tokens, self.grid = width, heads, prefix, (patches, 1)


@requires_golden
@pytest.mark.parametrize("name", names("heads.json"))
def test_heads(name, monkeypatch):
    case, tensors = load_json(f"{D}/heads.json")[name], strip(load_tensors(f"{D}/heads.safetensors"), f"{name}.")
    parameters, tokens = strip(tensors, "param."), tensors["input"]
    classes, width = case["output_shape"][-1], tokens.shape[-1]
    prefix = case.get("num_prefix_tokens", 0)
    patches = case.get("num_latent_tokens", tokens.shape[1] - prefix)
    backbone = Announced(width, case.get("num_heads", 1), patches, prefix)
    if name == "mlp":
        monkeypatch.setattr("eval.probing.heads.HIDDEN", len(parameters["fc1.bias"]))
    labels = {"keep_prefix": "global-union", "mean": "global-union"}.get(case.get("mode"), "union")
    kind = {"transformer_intervention": "transformer-separate"}.get(name, name.split("_")[0])
    head = make_head(kind, labels, backbone, classes)
    head.load_state_dict(parameters)
    assert isinstance(head, (nn.Module if "mode" not in case else TransformerHead))
    assert isinstance(head, LatentHead) == (name == "transformer_intervention")
    output = head(tokens)
    assert list(output.shape) == case["output_shape"]
    torch.testing.assert_close(output, tensors["output"], atol=2e-5, rtol=1e-5)


@requires_golden
@pytest.mark.parametrize("name", names("backbone_modes.json"))
def test_backbone_modes(name, monkeypatch):
    case, tensors = load_json(f"{D}/backbone_modes.json")[name], load_tensors(f"{D}/backbone_modes.safetensors")
    backbone, mode, skip = name.split(".")
    parameters = strip(tensors, f"{backbone}.param.")
    depth = 1 + max(int(key.split(".")[1]) for key in parameters if key.startswith("blocks."))
    (width, _, patch, _), size = parameters["patch_embed.proj.weight"].shape, tensors["input"].shape[-1]
    registers = parameters["reg_token"].shape[1] if "reg_token" in parameters else 0
    covered = parameters["pos_embed"].shape[1] == (size // patch) ** 2
    kwargs = {"patch_size": patch, "embed_dim": width, "depth": depth, "reg_tokens": registers}
    kwargs |= {"num_heads": unsaid_heads()}
    kwargs |= {"class_token": "cls_token" in parameters, "no_embed_class": covered}
    kwargs |= {"global_pool": "token" if "cls_token" in parameters else "map"}
    spec = BackboneSpec("golden", arch="vit_base_patch16_224", image_size=size, arch_kwargs=kwargs)
    built = ProbedBackbone(spec, mode.removeprefix("keep_"), skip_blocks=int(skip[-1]), pretrained=False)
    (vit,) = built.vits
    kept = {key: value for key, value in parameters.items() if key in vit.state_dict()}
    vit.load_state_dict(kept)
    assert (len(vit.blocks), type(vit.norm).__name__) == (case["blocks_left"], case["norm_after"])
    expected = tensors[f"{name}.output"]
    assert (built.num_tokens, built.embed_dim) == expected.shape[1:]
    torch.testing.assert_close(built(tensors["input"]), expected, atol=2e-5, rtol=1e-5)
    assert vit_module.load_vit  # the backbone is the registry's


@requires_golden
@pytest.mark.parametrize("case", entries("lr_schedule.json"), ids=lambda case: f"warmup-{case['warmup_t']}")
def test_schedule(case):
    rate = {"peak": case["lr"], "minimum": case["lr_min"], "total_steps": case["t_initial"]}
    for step, expected in enumerate(case["lr_used_at_update"]):
        assert math.isclose(cosine_rate(step, **rate, warmup_steps=case["warmup_t"]), expected, abs_tol=1e-12)
    assert math.isclose(cosine_rate(case["t_initial"], **rate), case["lr_after_last"], abs_tol=1e-12)


@requires_golden
@pytest.mark.parametrize("name", sorted(entries("dataset_items.json")["info"]) if entries("dataset_items.json") else [])
def test_dataset_items(name):
    index, tensors = load_json(f"{D}/dataset_items.json"), load_tensors(f"{D}/dataset_items.safetensors")
    config, info = index["config"], index["info"][name]
    which, classes, kind = name.split(".")
    dataset = DATASETS["ade20k" if which == "ade" else "coco-things" if classes == "things" else "coco"]
    assert len(dataset.classes) == info["num_classes"]
    # The reference takes in values that are no ids of the data set, and these images hold some.
    wide = dataclasses.replace(dataset, class_of=np.where(dataset.class_of == INVALID, 0, dataset.class_of))
    folder = golden_dir() / D / "dataset_inputs" / which
    pairs = [(path, path.with_suffix(".png")) for path in sorted(folder.glob("*.jpg"))]
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    spec = BackboneSpec("golden", arch="vit_base_patch16_224", image_size=config["image_width"], mean=mean, std=std)
    examples = PatchExamples(wide, pairs, spec, config["patch_size"], [kind])
    assert len(pairs) == len([key for key in tensors if key.startswith(f"{which}.") and key.endswith(".image")])
    for row, example in enumerate(examples):
        torch.testing.assert_close(example["pixel_values"], tensors[f"{which}.{row}.image"], atol=1e-5, rtol=0)
        expected = tensors[f"{name}.{row}.label"]
        assert list(expected.shape) == info["label_shape"]
        found = unpack(example[kind], info["num_classes"], kind)
        assert torch.equal(found.to(expected.dtype), expected)
