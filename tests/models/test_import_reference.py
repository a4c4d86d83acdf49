"""Checkpoints of the reference implementation become models of ours that compute the same."""

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from reference import within, write_run

import prismatic
from prismatic.miniature.scenes import scene
from prismatic.models.llm import get_llm_spec
from prismatic.models.reference import import_reference
from prismatic.text.prompts import chat_template
from recipes.cli import main
from vision_backbones import BackboneSpec, registry
from vision_backbones.vit import build_vit

MINIATURE = {"vision_backbone": "miniature", "llm": "miniature", "projector": "gelu-mlp"}


def in_reference_names(model):
    """The modules of a reference checkpoint with a model's weights, for MLP projectors."""
    modules = {"projector": {}, "llm_backbone": {}, "vision_backbone": {}}
    featurizers = {"vit": "featurizer", "parts.0.vit": "dino_featurizer", "parts.1.vit": "siglip_featurizer"}
    named = {f"{part}.{n}": v for part, module in model.parts().items() for n, v in module.state_dict().items()}
    for name, value in named.items():
        module, _, rest = name.partition(".")
        if module == "vision_backbone":
            place, _, parameter = rest.partition("vit.")
            modules[module][f"{featurizers[place + 'vit']}.{parameter}"] = value
        else:
            modules["llm_backbone" if module == "llm" else module][f"{module}.{rest}"] = value
    return modules


def trained(model, *parts):
    """The model after a training, of sorts, of some of its parts."""
    torch.manual_seed(1)
    for part in parts:
        for parameter in model.parts()[part].parameters():
            parameter.data.add_(torch.randn_like(parameter) * parameter.data.std().nan_to_num(0.02) * 0.3)
    return model.eval()


def logits_of(model, processor, words=600):
    picture = Image.fromarray(scene(77, 0).image)
    inputs = processor(images=picture, text="What color is the cross?")
    with torch.no_grad():
        return model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits[..., :words]


@pytest.fixture(scope="module")
def miniature():
    """A finetuned model and its run's modules."""
    torch.manual_seed(0)
    model, processor = prismatic.build(*MINIATURE.values())
    trained(model, "llm", "projector")
    modules = in_reference_names(model)
    del modules["vision_backbone"]
    return model, processor, modules


CONFIG = {"vision_backbone_id": "miniature", "llm_backbone_id": "miniature", "arch_specifier": "no-align+gelu-mlp",
          "image_resize_strategy": "letterbox"}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_run_folder_goes_through_the_command_line(kind, miniature, tmp_path, monkeypatch, capsys):
    model, processor, modules = miniature
    run = write_run(tmp_path / "run", modules, CONFIG, kind)
    given = run if kind == "json" else run / "checkpoints" / "latest-checkpoint.pt"
    monkeypatch.setattr(sys, "argv", ["prismatic", "import-reference", str(given), str(tmp_path / "out")])
    main()
    said = capsys.readouterr().out
    assert f"llm miniature: {len(modules['llm_backbone'])} tensors of the checkpoint" in said
    assert "vision_backbone miniature: pretrained" in said
    loaded, loaded_processor = prismatic.load(tmp_path / "out")
    assert loaded.config.image_resize_strategy == "letterbox"
    loaded_processor.image_processor.image_resize_strategy = "resize-naive"
    torch.testing.assert_close(logits_of(loaded, loaded_processor), logits_of(model, processor), atol=1e-5, rtol=0)
    text = loaded_processor(images=Image.fromarray(scene(77, 0).image), text="Is there a circle?")
    assert loaded.generate(**text, max_new_tokens=3).shape[1] <= text["input_ids"].shape[1] + 3


def test_only_the_projector_of_stage_align(miniature, tmp_path):
    _, processor, modules = miniature
    run = write_run(tmp_path / "run", {"projector": modules["projector"]}, CONFIG)
    summary = import_reference(run, tmp_path / "out", image_resize_strategy="resize-naive")
    assert "llm miniature: pretrained" in summary
    expected, _ = prismatic.build(*MINIATURE.values())
    expected.projector.load_state_dict(within(modules["projector"], "projector."))
    torch.testing.assert_close(logits_of(*prismatic.load(tmp_path / "out")), logits_of(expected.eval(), processor))


def test_blocks_that_moved_to_the_projector(tmp_path):
    model, processor = prismatic.build("miniature", "miniature", "truncated")
    modules = in_reference_names(trained(model, "llm", "projector"))
    del modules["vision_backbone"]
    run = write_run(tmp_path / "run", modules, CONFIG | {"arch_specifier": "no-align+truncated"})
    import_reference(run, tmp_path / "out", image_resize_strategy="resize-naive")
    torch.testing.assert_close(logits_of(*prismatic.load(tmp_path / "out")), logits_of(model, processor))


def test_two_trained_backbones_with_what_their_features_leave_out(tmp_path, monkeypatch):
    """Full finetunes store whole ViTs: last block, final norm and attention pooling are no weights of ours."""
    small = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4}
    values = {"image_size": 48, "arch_kwargs": small, "mean": (0.5,) * 3, "std": (0.5,) * 3,
              "interpolation": "bicubic", "crop_pct": 1.0}  # fmt: skip
    parts = tuple(BackboneSpec(arch, arch=arch, **values) for arch in ("vit_base_patch14_reg4_dinov2",
                                                                       "vit_base_patch16_siglip_224"))  # fmt: skip
    monkeypatch.setitem(registry._specs, "small-fused", BackboneSpec("small-fused", parts=parts, image_size=48))
    model, processor = prismatic.build("small-fused", "miniature", "fused-gelu-mlp", pretrained=False)
    modules = in_reference_names(trained(model, "llm", "projector", "vision_backbone"))
    for name, part in zip(("dino_featurizer", "siglip_featurizer"), parts, strict=True):
        whole = {f"{name}.{key}": value for key, value in build_vit(part).state_dict().items()}
        assert modules["vision_backbone"].keys() & whole.keys() < whole.keys()
        modules["vision_backbone"] = whole | modules["vision_backbone"]
    run = write_run(tmp_path / "run", modules)
    import_reference(run, tmp_path / "out", vision_backbone="small-fused", llm="miniature", projector="fused-gelu-mlp")
    torch.testing.assert_close(logits_of(*prismatic.load(tmp_path / "out")), logits_of(model, processor))


@pytest.mark.parametrize("rows", [832, 774])
def test_a_folder_without_weights_names_the_llm_and_the_checkpoint_its_words(rows, miniature, tmp_path):
    """The vocabulary is the checkpoint's: phi-2's is smaller than its hub's, and it may have no room for `<image>`."""
    model, processor, modules = miniature
    llm = tmp_path / "llm"
    shutil.copytree(get_llm_spec("miniature").hub, llm, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(config | {"vocab_size": 1024}))
    modules = copy.deepcopy(modules)
    for name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
        modules["llm_backbone"][name] = modules["llm_backbone"][name][:rows].clone()
    modules["llm_backbone"]["llm.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of old versions
    run = write_run(tmp_path / "run", modules, CONFIG | {"llm_backbone_id": "vicuna-v15-7b"})
    import_reference(run, tmp_path / "out", llm=str(llm), image_resize_strategy="resize-naive")
    loaded, loaded_processor = prismatic.load(tmp_path / "out")
    assert loaded.config.text_config.vocab_size == 832
    assert loaded_processor.tokenizer.chat_template == chat_template("vicuna-v1.5")
    torch.testing.assert_close(logits_of(loaded, loaded_processor), logits_of(model, processor), atol=1e-5, rtol=0)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_a_malicious_pickle_is_refused_and_not_run(miniature, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", {"projector": miniature[2]["projector"] | {"extra": Malicious()}}, CONFIG)
    with pytest.raises(ValueError, match="refused: reading it would call .* Nothing was run"):
        import_reference(run, tmp_path / "out")
    assert not Path("touched-by-a-pickle").exists() and not (tmp_path / "out").exists()
    torch.load(run / "checkpoints" / "latest-checkpoint.pt", weights_only=False)
    assert Path("touched-by-a-pickle").exists(), "it would have"


def spoil(modules, module, name, value=None):
    modules = copy.deepcopy(modules)
    modules[module] = {k: v for k, v in modules[module].items() if k != name} | ({} if value is None else {name: value})
    return modules


NORM = "llm.model.norm.weight"
SPOILED = {
    "missing": (lambda m: spoil(m, "llm_backbone", NORM), r"1 missing, 0 unexpected \(model.norm.weight is missing"),
    "unknown": (
        lambda m: spoil(m, "projector", "projector.4.weight", torch.zeros(2)),
        r"projector in .* does not fit --projector gelu-mlp: .* 1 unexpected \(4.weight is \[2\], expected none",
    ),
    "shape": (
        lambda m: spoil(m, "llm_backbone", NORM, torch.zeros(7)),
        r"1 tensors of another shape.*model.norm.weight is \[7\], expected \[\d+\]",
    ),
    "vocabulary": (
        lambda m: spoil(m, "llm_backbone", "llm.model.embed_tokens.weight", torch.zeros(600, 4)),
        "knows 600 tokens, the tokenizer of --llm miniature has 774",
    ),
    "foreign-llm": (
        lambda m: spoil(m, "llm_backbone", "adapter.weight", torch.zeros(7)),
        "unexpected tensors llm_backbone.adapter.weight",
    ),
    "no-tensor": (lambda m: spoil(m, "projector", "projector.0.weight", 3), "'projector' is not a dict of tensors"),
    "empty": (lambda m: m | {"llm_backbone": {}}, "'llm_backbone' is empty"),
    "other-module": (lambda m: m | {"audio": {}}, "'model' holds projector, llm_backbone, audio; expected"),
    "no-projector": (lambda m: {"llm_backbone": m["llm_backbone"]}, "'model' holds llm_backbone; expected"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_checkpoints_that_do_not_fit_are_refused_in_one_line(case, miniature, tmp_path):
    change, message = SPOILED[case]
    run = write_run(tmp_path / "run", change(miniature[2]), CONFIG)
    with pytest.raises(ValueError, match=message) as raised:
        import_reference(run, tmp_path / "out")
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_files_that_are_no_such_checkpoint_are_refused_in_one_line(miniature, tmp_path):
    whole = write_run(tmp_path / "run", miniature[2], CONFIG) / "checkpoints" / "latest-checkpoint.pt"
    content = whole.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("once upon a time")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "vit.pt")
    torch.save([1], tmp_path / "list.pt")
    expected = {"cut": "torch.save", "text": "torch.save", "vit": "holds state_dict, epoch; expected", "list": "list"}
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message) as raised:
            import_reference(tmp_path / f"{name}.pt", tmp_path / "out", **MINIATURE)
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)


def test_what_is_not_said_is_asked_for(miniature, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", miniature[2])
    with pytest.raises(ValueError, match="which llm, projector it was trained with.*--model NAME"):
        import_reference(run, tmp_path / "out", vision_backbone="miniature")
    with pytest.raises(ValueError, match="did you mean gelu-mlp"):
        import_reference(run, tmp_path / "out", **MINIATURE | {"projector": "gelu-mpl"})
    with pytest.raises(ValueError, match="no file or folder"):
        import_reference(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no checkpoints/\*.pt"):
        import_reference(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="run exists already"):
        import_reference(run, run)
    (run / "config.json").write_text(json.dumps({"model": {"vision_backbone_id": "clip-vit-b"}}))
    with pytest.raises(ValueError, match="its `model` lacks llm_backbone_id, arch_specifier, image_resize_strategy"):
        import_reference(run, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["prismatic", "import-reference", str(run), "out", "--model", "prism-clip+8b"])
    with pytest.raises(SystemExit, match=r"error: unknown model 'prism-clip\+8b': did you mean prism-clip\+7b"):
        main()


def test_a_named_model_stands_in_for_the_configuration(miniature, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", miniature[2])
    preset = MINIATURE | {"image_resize_strategy": "letterbox", "epochs": 1}
    monkeypatch.setattr("recipes.config.presets.read_presets", lambda file: {"named": preset})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["prismatic", "import-reference", str(run), str(out), "--model", "named"])
    main()
    assert prismatic.load(out)[0].config.image_resize_strategy == "letterbox"
