"""A portable folder loads where this package is not installed, and gives what it gives here."""

import json
import os
import subprocess
import sys
import sysconfig

import pytest
import torch
from golden_cases import ROOT
from PIL import Image

import prismatic
from prismatic.miniature.scenes import scene
from prismatic.models.portable import flat, needed, rewritten
from recipes.export import export

ELSEWHERE = """
import json, sys
sys.path = [place for place in sys.path if place not in ("", {root!r})] + [{packages!r}]
from importlib.util import find_spec
assert not any(map(find_spec, ("prismatic", "vision_backbones", "recipes"))), "the package is here"
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({folder!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({folder!r}, trust_remote_code=True)
parts = [{{"type": "image", "image": Image.open({picture!r})}}, {{"type": "text", "text": {question!r}}}]
chat = [{{"role": "user", "content": parts}}]
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
print(json.dumps({{"ids": ids.tolist(), "logits": logits.tolist(), "class": type(model).__module__}}))
"""
QUESTION = "What color is the cross?"


def elsewhere(folder, tmp_path):
    """What an interpreter finds that has the installed packages, but for this one."""
    picture = tmp_path / "picture.png"
    Image.fromarray(scene(3, 0).image).save(picture)
    names = {"root": str(ROOT), "packages": sysconfig.get_path("purelib"), "folder": str(folder)}
    code = ELSEWHERE.format(**names, picture=str(picture), question=QUESTION)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-S", "-c", code]  # without site, which knows of an editable installation
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("made", ["miniature", "other"])
def test_logits_and_answers_are_the_same(made, tmp_path):
    if made == "other":
        model, processor = prismatic.build("miniature-aligned", "miniature", "transformer")
        model.save_pretrained(tmp_path / "other"), processor.save_pretrained(tmp_path / "other")
        made = tmp_path / "other"
    model, processor = prismatic.load(made)
    out = export(str(made), tmp_path / "out", format="portable")
    found = elsewhere(out, tmp_path)
    inputs = processor.ask([QUESTION], [Image.fromarray(scene(3, 0).image)])
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0, -1]
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0]
    assert found["ids"] == ids.tolist()
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=1e-5, atol=1e-5)
    assert found["class"].startswith("transformers_modules.")


def test_the_folder_names_no_module_that_is_not_in_it(tmp_path):
    files = {flat(name) for name in needed()}
    for name in needed():
        source = rewritten(name)
        compile(source, name, "exec")
        for line in source.splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("."):
                assert words[1][1:] in files, line
            assert not line.lstrip().startswith(("from prismatic", "from vision_backbones", "import prismatic")), line


def test_this_package_does_not_run_code_of_a_folder(tmp_path):
    out = export("miniature", tmp_path / "out", format="portable")
    with pytest.raises(ValueError, match="auto_map"):
        prismatic.load(out)


def test_adapters_are_no_portable_models(tmp_path):
    with pytest.raises(ValueError, match="--format portable holds whole models"):
        export("miniature", tmp_path / "out", format="portable", keep_adapters=True)
