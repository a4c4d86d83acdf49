"""`prismatic models`: what can be fetched by name, and what has been."""

import re
import subprocess
import sys

from golden_cases import ROOT, load_json, requires_golden

from prismatic.models.released import IDS, imported_folder
from recipes.config.presets import read_presets
from recipes.models import listed
from vision_backbones.released import RELEASED


def test_what_is_here_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMATIC_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("VISION_BACKBONES_WEIGHTS", str(tmp_path / "weights"))
    assert not re.search(r" yes( |$)", listed(), re.M)
    imported_folder("phi-2+3b").mkdir(parents=True)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "moco-vit-b.safetensors").touch()
    shown = listed()
    assert re.search(r"^phi-2\+3b +clip-vit-l-336px +phi-2-3b +yes$", shown, re.M)
    assert re.search(r"^moco-vit-b +vit_base_patch16_224 +yes +https://dl\.fbaipublicfiles", shown, re.M)
    assert len(re.findall(r" yes( |$)", shown, re.M)) == 2
    for name in (*IDS, *(release.backbone for release in RELEASED.values())):
        assert re.search(rf"^{re.escape(name)} ", shown, re.M), name


def test_listing_imports_no_torch():
    code = "import sys; from recipes.models import main; main([])\nprint({'torch', 'timm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stderr


@requires_golden
def test_their_parts_are_those_of_the_reference():
    known = {row["model_id"]: row for row in load_json("B_prismatic/B7_training/all_model_ids.json")}
    for id in IDS:
        preset = read_presets("models.yaml")[id]
        assert (preset["vision_backbone"], preset["llm"]) == (known[id]["vision"], known[id]["llm"]), id
