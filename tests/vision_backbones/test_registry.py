import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import vision_backbones.registry as registry
from vision_backbones import (
    BackboneSpec,
    check_spec,
    create_backbone,
    get_spec,
    import_plugins,
    list_backbones,
    listing,
    register,
    resolve_spec,
)
from vision_backbones.__main__ import main
from vision_backbones.vit import Layout, layout

ROOT = Path(__file__).resolve().parents[2]


def python(*args, **environment):
    paths = os.pathsep.join(filter(None, [str(ROOT), environment.pop("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment)


@pytest.fixture
def scratch_registry(monkeypatch):
    """Registrations that go away with the test."""
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))


def test_a_vit_is_looked_at_once(monkeypatch):
    """For all specs of it; a spec does not change with the dict that it was made of."""
    built, create = [], timm.create_model
    monkeypatch.setattr("timm.create_model", lambda *args, **kwargs: built.append(args) or create(*args, **kwargs))
    own = {"patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 3}
    first = BackboneSpec("first", arch="vit_tiny_patch16_224", image_size=40, arch_kwargs=own)
    assert layout(first) == Layout(patch=8, grid=(5, 5), depth=5)
    check_spec(dataclasses.replace(first, id="second", aligned=True, weights="elsewhere"))
    assert len(built) == 1
    own["depth"] = 4
    other = BackboneSpec("other", arch="vit_tiny_patch16_224", image_size=40, arch_kwargs=own)
    assert (layout(first).depth, layout(other).depth, len(built)) == (5, 4, 2)


def test_listing_imports_neither_torch_nor_timm():
    code = "import sys, vision_backbones.listing as v; v.rows(); print(sorted({'torch', 'timm'} & set(sys.modules)))"
    assert python("-c", code).stdout.strip() == "[]"


def test_registering(scratch_registry):
    spec = BackboneSpec("my-vit", arch="vit_small_patch14_dinov2", image_size=518)
    assert register(spec) is spec
    assert get_spec("my-vit") is spec and list_backbones()[-1] == "my-vit"
    with pytest.raises(ValueError, match="'my-vit' is already registered"):
        register(spec)
    with pytest.raises(ValueError, match="reserved"):
        register(dataclasses.replace(spec, id="timm:my-vit"))


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("clip-vit-1", "unknown vision backbone 'clip-vit-1': did you mean clip-vit-l"),
        ("timm:vit_bas_patch16_224", "has no model 'vit_bas_patch16_224': did you mean vit_base_patch16_224"),
        ("timm:vit_base_patch16_224.mea", "did you mean vit_base_patch16_224"),
    ],
)
def test_unknown_names_list_the_closest(id, expected):
    with pytest.raises(ValueError) as error:
        get_spec(id)
    assert expected in str(error.value)


def test_backbones_joined_by_plus():
    """As specs of their own at the image size of the first; runs, timm's ids and several are taken, typos are not."""
    spec = check_spec("clip-vit-l-336px-aligned+dinov2-vit-l")
    first, second = spec.parts
    assert (spec.id, spec.image_size, spec.family) == ("clip-vit-l-336px-aligned+dinov2-vit-l", 336, "fused")
    assert (first, second.id, second.image_size) == (get_spec("clip-vit-l-336px-aligned"), "dinov2-vit-l", 336)
    assert get_spec("timm:vit_tiny_patch16_224 + miniature + timm:resnet18").image_size == 224
    border = check_spec("siglip-vit-so400m-384px+dinov2-vit-l")  # what the catalog has as dinosiglip-vit-so-384px
    assert {part.id: part for part in border.parts} == {
        part.id: part for part in check_spec("dinosiglip-vit-so-384px").parts
    }
    for id, said in {
        "miniature+miniatur": "unknown vision backbone 'miniatur': did you mean miniature",
        "clip-vit-l+siglip-vit-b": "must share one patch grid, got clip-vit-l 16x16, siglip-vit-b 14x14 at 224 px",
        "clip-vit-b+dinov2-vit-l+": "has a .+. with no backbone beside it",
        "miniature+dinoclip-vit-l-336px": "'dinoclip-vit-l-336px' in 'miniature.dinoclip-vit-l-336px' is fused already",
        "clip-vit-l-336px+siglip-vit-b": "one patch grid, got clip-vit-l-336px 24x24, siglip-vit-b 21x21 at 336 px",
        "siglip-vit-b16-256px+dinov2-vit-l": "image size 256 is not a multiple of its patch size 14; use 252 or 266",
    }.items():
        with pytest.raises(ValueError, match=said):
            check_spec(id)


def test_a_registered_id_goes_before_what_plus_would_mean(scratch_registry):
    spec = register(BackboneSpec("miniature+miniature", arch="vit_small_patch14_dinov2", image_size=518))
    assert get_spec("miniature+miniature") is spec


def test_any_timm_vit_works_unregistered():
    spec = check_spec("timm:vit_large_patch14_clip_quickgelu_336.openai")
    catalog = get_spec("clip-vit-l-336px")
    assert (spec.arch, spec.image_size, spec.mean, spec.std) == (
        catalog.arch,
        catalog.image_size,
        catalog.mean,
        catalog.std,
    )
    assert check_spec("timm:vit_so400m_patch14_siglip_384").image_size == 384  # timm's own size may leave a border
    with pytest.warns(UserWarning, match="QuickGELU"):
        get_spec("timm:vit_base_patch16_clip_224.openai")


def test_fields_left_open_come_from_timm():
    spec = resolve_spec(BackboneSpec("mine", arch="vit_small_patch14_dinov2"))
    assert (spec.image_size, spec.crop_pct, spec.interpolation) == (518, 1.0, "bicubic")
    assert spec.mean == (0.485, 0.456, 0.406)


def test_specs_survive_json():
    for id in list_backbones():
        spec = get_spec(id)
        assert BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"id": "a", "arch": "b", "image_sise": 3},
            "unknown key 'image_sise' in a backbone spec: did you mean image_size",
        ),
        ({"arch": "b"}, "needs the key 'id'"),
        ({"id": "a"}, "either arch"),
        ({"id": "a", "arch": "b", "image_size": 0}, "must be positive, got 0"),
        ({"id": "a", "image_size": 8, "parts": [{"id": "b", "arch": "c"}]}, "two or more"),
        ({"id": "a", "parts": [{"id": "b", "arch": "c"}] * 2}, "needs image_size"),
        ({"id": "a", "image_size": 8, "crop_pct": 1.0, "parts": [{"id": "b", "arch": "c"}] * 2}, "set crop_pct on the"),
    ],
)
def test_impossible_specs_are_refused(values, expected):
    with pytest.raises(ValueError) as error:
        BackboneSpec.from_dict(values)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("id", "image_size", "expected"),
    [
        ("clip-vit-l", 230, "image size 230 is not a multiple of its patch size 14; use 224 or 238"),
        ("siglip-vit-so400m-384px", 385, "use 378 or 392"),  # the border is allowed at 384 only
        ("dinosiglip-vit-so-224px", 384, "'dinov2-vit-l': image size 384"),
        ("miniature", 4, "use 8 or 16"),
    ],
)
def test_image_sizes_that_do_not_fit(id, image_size, expected):
    with pytest.raises(ValueError) as error:
        create_backbone(id, image_size=image_size)  # before weights are looked for: they are absent
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "id", ["siglip-vit-so400m-384px", "siglip-vit-so400m-384px-aligned", "dinosiglip-vit-so-384px"]
)
def test_shipped_borders_are_allowed(id):
    assert check_spec(id).image_size == 384


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (BackboneSpec("a", arch="resnet18", image_size=64, arch_kwargs={"widht": 3}), "timm cannot build resnet18"),
        (
            BackboneSpec("a", arch="swin_tiny_patch4_window7_224", aligned=True),
            "is a SwinTransformer, not a plain ViT: its features mix neighbouring patches",
        ),
        (BackboneSpec("a", arch="vit_tiny_patch16_224", arch_kwargs={"widht": 3}), "'widht'"),
        (BackboneSpec("a", arch="samvit_base_patch16", soft_cap=30.0), "soft_cap 30.0"),
        (
            BackboneSpec("a", arch="vit_tiny_patch16_224", arch_kwargs={"depth": 1}),
            "second-to-last block's, but depth is 1",
        ),
        (BackboneSpec("a", arch="vit_7b_patch16", image_size=8, mean=(0.5,) * 3), "no model 'vit_7b_patch16'"),
    ],
)
def test_architectures_that_do_not_fit(spec, expected):
    with pytest.raises(ValueError) as error:
        check_spec(spec)
    assert expected in str(error.value)


def test_tail_blocks_out_of_range():
    with pytest.raises(ValueError, match="tail_blocks must be 0 to 7, got 8"):
        check_spec("miniature", tail_blocks=8)
    with pytest.raises(ValueError, match="'dinosiglip-vit-so-224px' is fused"):
        check_spec("dinosiglip-vit-so-224px", tail_blocks=2)


PLUGIN = (
    "from vision_backbones import BackboneSpec, register\nregister(BackboneSpec('{id}', arch='vit_tiny_patch16_224'))\n"
)


def test_plugins_register_from_the_working_directory(scratch_registry, tmp_path, monkeypatch):
    (tmp_path / "my_backbones.py").write_text(PLUGIN.format(id="from-plugin"))
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_plugins(["my_backbones"])
    assert get_spec("from-plugin").arch == "vit_tiny_patch16_224"
    with pytest.raises(ValueError, match="no plugin module 'my_backbonez'"):
        import_plugins(["my_backbonez"])
    with pytest.raises(ValueError, match="no plugin module 'no_package.module'"):
        import_plugins(["no_package.module"])
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):  # the plugin's own fault, shown as it is
        import_plugins(["needs_more"])


def test_installed_packages_register_by_entry_point(tmp_path):
    (tmp_path / "third_party.py").write_text(PLUGIN.format(id="from-package"))
    for name, target in (("good", "third_party"), ("broken", "not_there_at_all")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[vision_backbones]\n{name} = {target}\n")
    done = python("-m", "vision_backbones", "list", PYTHONPATH=str(tmp_path))
    assert "from-package" in done.stdout and "miniature" in done.stdout
    assert "plugin 'broken' (not_there_at_all) failed" in done.stderr


def test_the_list_says_what_is_so(monkeypatch, capsys):
    """Sizes, tokens and licences against the models themselves and timm's records; the same with no command."""
    shown = {}
    for argv in (["vision_backbones"], ["vision_backbones", "list"]):
        monkeypatch.setattr(sys, "argv", argv)
        main()
        shown[len(argv)] = capsys.readouterr().out
    assert shown[1] == shown[2]
    title, _, *lines = (re.split(r"  +", line) for line in shown[1].splitlines())
    assert title == ["id", "family", "px", "tokens", "aligned", "licence", "timm id"] and len(lines) == len(
        list_backbones()
    )
    by_id = {line[0]: line for line in lines}
    assert by_id["clip-vit-l-336px"][2:5] == ["336", "576", "has"]
    assert by_id["clip-vit-l-336px-aligned"][2:6] == ["336", "577", "is", "see the model card"]
    assert by_id["dinosiglip-vit-so-384px"][2:4] == ["384", "729"]
    for id in list_backbones():
        spec = get_spec(id)
        if spec.family and spec.arch and spec.weights is None:  # other tests' own are of no family
            assert listing.licence(spec) == timm.get_pretrained_cfg(spec.arch).license, id
    assert listing.licence(get_spec("moco-vit-b")) == "see the model card"
    assert listing.licence(get_spec("miniature")) == (ROOT / "LICENSE").read_text().split()[0].lower()


def test_the_list_in_full_and_of_timm(monkeypatch, capsys):
    for id in list_backbones():
        if id not in ("miniature", "miniature-aligned"):
            monkeypatch.delitem(registry._specs, id)
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "list", "--full"])
    main()
    parameters = sum(p.numel() for p in create_backbone("miniature", pretrained=False).parameters())
    assert re.search(rf"miniature +miniature +48 +36 +has +96 +{parameters:,} +mit", capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "list", "--timm", "*_femto"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(timm.list_models("*_femto"))
    assert "timm:convnext_femto  feature map  224  7 x 7" in lines and lines[-1].endswith("can be backbones")
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "list", "--timm", "resnet81"])
    with pytest.raises(SystemExit):
        main()
    assert "has no model 'resnet81': did you mean resnet18" in capsys.readouterr().err


def test_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "describe", "dinosiglip-vit-so-384px"])
    main()
    assert "[B, 729, 2176], 0 prefix tokens, patches 27 x 27" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["vision_backbones", "describe", "miniatur"])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown vision backbone 'miniatur': did you mean miniature")
